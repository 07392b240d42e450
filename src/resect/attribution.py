"""One pass over the data scores every layer at once.

For example e with scored tokens T_e the loss is L_e = -(1/|T_e|) Σ_t log p(token t), in nats; every
example weighs the same. Batches are padded on the right, where nothing that is scored can see the
padding, and logits are computed at scored positions alone.

Two kinds of sums over examples are kept, each in fp32 whatever the model's dtype:
- gradient sums Σ_e ∂L_e/∂w, folded in by a hook as soon as a parameter's gradient is there, which
  is then freed;
- absolute sums Σ_e |∂L_e/∂w|, from the inputs x and output gradients δ of each layer: the gradient
  of one example is δᵀx over its tokens, so no pass of batch size 1 is needed.

Legend: B examples of a batch, T tokens, S scored tokens of a batch, V vocabulary, I inputs and O
outputs of a layer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resect.errors import InputError, ResectError
from resect.model.load import model_fingerprint, tokenizer_fingerprint
from resect.model.prunable import PrunableWeight, find_prunable
from resect.records import Encoded
from resect.scores import SNIP
from resect.scoreset import ScoreMeta, Scores, TensorScores, candidates

# Measured on two CPU cores: batches of 4 to 8 rows of 128 tokens are quickest, 32 are slower.
CPU_TOKENS = 1024
GPU_TOKENS = 8192
LARGE = 1_000_000_000


@dataclass(frozen=True)
class AttributeSettings:
    """How a pass is made, and what its artefact says of the data.

    Attributes:
        batch_size: Examples a batch; None fills batches up to a number of tokens.
        keep: Largest fraction that can be selected later; None for 1e-2, or 1e-3 for models of
            more than a billion prunable weights.
        dense: Keep the score of every weight.
        data_hash: 16 hex digits of the data.
        format: `raw` or `chat`.
        skip: Response tokens that are not scored.
        category: The one category that is scored, "" for all.
        seed: Seed of the draw of examples.
    """

    batch_size: int | None = None
    keep: float | None = None
    dense: bool = False
    data_hash: str = ""
    format: str = "chat"
    skip: int = 0
    category: str = ""
    seed: int = 0

    def fraction(self, total: int) -> float:
        """Return the fraction of candidates to keep for a model of `total` prunable weights."""
        if self.dense:
            return 1.0
        return self.keep or (1e-3 if total > LARGE else 1e-2)


def attribute_many(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: AttributeSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Scores]:
    """Score every prunable weight, in several reductions from one pass.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer; its fingerprint goes into the artefact.
        encoded: The examples.
        reductions: Names in `resect.scores.SNIP`.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.

    Raises:
        InputError: No example, or a loss or gradient that is not finite.
    """
    settings = settings or AttributeSettings()
    coverage = find_prunable(model)
    wanted = {SNIP[name][0] for name in reductions}
    parameters = dict(model.named_parameters())
    with _scoring(model, coverage.weights, wanted) as sums:
        for done, batch in enumerate_batches(encoded, _budget(model, settings)):
            if on_progress is not None:
                on_progress(done, len(encoded))
            sums.expect(batch)
            batch_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    if on_progress is not None:
        on_progress(len(encoded), len(encoded))
    meta = {
        "method": "snip",
        "keep": settings.fraction(coverage.total),
        "model_id": str(getattr(model, "name_or_path", "")),
        "model_fingerprint": model_fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "data_hash": settings.data_hash,
        "examples": len(encoded),
        "tokens": sum(example.scored_tokens for example in encoded),
        "format": settings.format,
        "skip": settings.skip,
        "category": settings.category,
        "seed": settings.seed,
    }
    found = {}
    for name in reductions:
        kind, rule = SNIP[name]
        dense = {
            weight: rule(
                parameters[weight].detach(), sums.totals[kind][weight] / len(encoded)
            ).reshape(-1)
            for weight in sums.totals[kind]
        }
        _refuse_nan(dense)
        found[name] = _sparse(dense, parameters, ScoreMeta(reduction=name, **meta))
    return found


def _sparse(dense: dict[str, Tensor], parameters: dict[str, Any], meta: ScoreMeta) -> Scores:
    tensors = {
        name: TensorScores(
            tuple(parameters[name].shape),
            index,
            dense[name][index.to(dense[name].device)].cpu(),
            parameters[name].detach().reshape(-1)[index.to(parameters[name].device)].cpu(),
        )
        for name, index in candidates(dense, meta.keep).items()
    }
    return Scores(tensors, meta)


def _refuse_nan(dense: dict[str, Tensor]) -> None:
    for name, scores in dense.items():
        if not bool(scores.isfinite().all()):
            raise InputError(
                f"the gradients of {name} are not finite",
                fix="load the model in float32 or bfloat16, and check the data for odd examples",
            )


def _budget(model: Any, settings: AttributeSettings) -> tuple[int | None, int]:
    return settings.batch_size, GPU_TOKENS if model.device.type == "cuda" else CPU_TOKENS


def enumerate_batches(
    encoded: Sequence[Encoded], budget: tuple[int | None, int]
) -> Iterator[tuple[int, list[Encoded]]]:
    """Yield (examples done before, batch), batches of similar length, longest first.

    Args:
        encoded: The examples.
        budget: Examples a batch, or None and then at most this many tokens with padding.

    Raises:
        InputError: There is no example, or one of them has no scored token.
    """
    if not encoded:
        raise InputError("there is no example to score")
    for example in encoded:
        if example.scored_tokens < 1 or example.first_scored < 1:
            raise InputError(f"example {example.id!r} has no token to score")
    size, tokens = budget
    order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
    done = 0
    while done < len(order):
        count = size or max(1, tokens // len(order[done].input_ids))
        yield done, order[done : done + count]
        done += count


def batch_loss(model: Any, batch: Sequence[Encoded]) -> Tensor:
    """Return Σ_e weight_e · L_e over a batch, a scalar with gradient.

    Raises:
        InputError: The loss of an example is not finite; its id is named.
    """
    width = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        attention[row, : len(example.input_ids)] = 1
    rows = torch.tensor([r for r, e in enumerate(batch) for _ in range(e.scored_tokens)])
    places = torch.tensor(
        [place for e in batch for place in range(e.first_scored, len(e.input_ids))]
    )
    device = model.device
    targets = ids[rows, places].to(device)
    with _head_at(model, rows.to(device), (places - 1).to(device)):
        logits = model(
            input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False
        ).logits
    nll = torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="none")  # [S]
    share = torch.tensor(
        [e.weight / e.scored_tokens for e in batch for _ in range(e.scored_tokens)], device=device
    )
    loss = (nll * share).sum()
    if not math.isfinite(loss.item()):
        bad = int((~nll.isfinite()).nonzero()[0])
        raise InputError(
            f"the loss of example {batch[int(rows[bad])].id!r} is not finite",
            fix="load the model in float32 or bfloat16, or remove the example",
        )
    return loss


@contextlib.contextmanager
def _head_at(model: Any, rows: Tensor, places: Tensor) -> Iterator[None]:
    """Let the output head see scored positions alone; logits become [1, S, V].

    What a model does to its logits afterwards (soft-capping, scaling) works on any shape.
    """

    def gather(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, places].unsqueeze(0), *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


class _Sums:
    """Sums over examples, one fp32 tensor a weight, filled by hooks during backward passes."""

    def __init__(self, wanted: set[Any]) -> None:
        self.totals: dict[str, dict[str, Tensor]] = {kind: {} for kind in wanted}
        self._batch: list[Encoded] = []

    def expect(self, batch: list[Encoded]) -> None:
        """Say which examples the next pass has."""
        self._batch = batch

    def fold_gradient(self, name: str, parameter: Any) -> None:
        """Add a parameter's gradient and free it."""
        self.totals["gradient"][name].add_(parameter.grad)
        parameter.grad = None

    def fold_absolute(self, weight: PrunableWeight, inputs: Tensor, gradient: Tensor) -> None:
        """Add |∂L_e/∂w| of each example, from inputs [B, T, I] and output gradient [B, T, O]."""
        if inputs.dim() != 3 or inputs.shape[0] != len(self._batch):
            raise ResectError(
                f"{weight.name} mixes the tokens of several examples",
                got=f"inputs of shape {tuple(inputs.shape)}",
                fix="use --reduction abs_of_mean, or --batch-size 1",
            )
        total = self.totals["absolute"][weight.name]
        for example, x, delta in zip(self._batch, inputs, gradient, strict=True):
            # [O, I] for nn.Linear, [I, O] for Conv1D: the shape of the weight itself.
            one = x.T @ delta if weight.layout == "in_out" else delta.T @ x
            sign_free = one.float().abs_()
            total.add_(sign_free if example.weight == 1.0 else sign_free * abs(example.weight))


@contextlib.contextmanager
def _scoring(model: Any, weights: Sequence[PrunableWeight], wanted: set[Any]) -> Iterator[_Sums]:
    """Install the hooks, and leave the model as it was found, also after an exception."""
    sums = _Sums(wanted)
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    training = model.training
    hooks: list[Any] = []
    model.eval()
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(requires_grad=False)
            parameter.grad = None
        # Activations must carry gradients even where no weight does.
        hooks.append(model.get_input_embeddings().register_forward_hook(_require_grad))
        for weight in weights:
            parameter = parameters[weight.name]
            for kind in wanted:
                sums.totals[kind][weight.name] = torch.zeros_like(parameter, dtype=torch.float32)
            if "gradient" in wanted:
                parameter.requires_grad_(requires_grad=True)
                hooks.append(
                    parameter.register_post_accumulate_grad_hook(
                        lambda p, name=weight.name: sums.fold_gradient(name, p)
                    )
                )
            if "absolute" in wanted:
                module = modules[weight.name.rpartition(".")[0]]
                hooks.append(module.register_forward_hook(_watch(sums, weight)))
        with torch.enable_grad():
            yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(requires_grad=flags[name])
            parameter.grad = gradients[name]
        model.train(training)


def _require_grad(_module: Any, _args: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_()


def _watch(sums: _Sums, weight: PrunableWeight) -> Callable[..., None]:
    def on_forward(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs = args[0].detach()
        output.register_hook(lambda gradient: sums.fold_absolute(weight, inputs, gradient))

    return on_forward
