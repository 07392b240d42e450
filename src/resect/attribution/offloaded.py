"""Score a model that is larger than memory, block by block, with its weights read from disk.

All examples go through one block before the next one is opened:

    forwards    for every block: open it, run all batches through it, write what comes out
    the end     last norm, head and loss: the gradient at what the last block gave
    backwards   for every block from the last: open it, run each batch through it again and back,
                fold the gradients of its weights into sums, make scores of them, close it

So each block is read twice however many batches there are. In memory at once are one block, its
sums, gradients and scores, the activations of one batch inside one block, and what is outside of
the blocks. The hidden states between blocks are on disk, 1 + depth times tokens × width.

What a block is called with beside the hidden states (positions, masks) is recorded from a pass of
the model in which every block gives back what it got. Gradients and sums are those of the engine in
memory (`resect.attribution.hooks`), so the scores are the same up to the order in which sums are
added. A model whose blocks do not stand in one plain row is refused.

Several processes share the examples: each reads every block, and sums are added weight by weight.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resect.attribution.choices import streamed_tokens
from resect.attribution.engine import noise_of
from resect.attribution.hooks import Watch, observing
from resect.attribution.loss import (
    Head,
    batch_loss,
    batches,
    check_examples,
    forward_of,
    not_finite,
)
from resect.attribution.methods import Rule, rule_of
from resect.attribution.settings import AttributeSettings
from resect.attribution.sums import EACH, Kind, Sums
from resect.errors import CoverageError, InputError
from resect.machine.memory import returned
from resect.machine.processes import ALONE, Processes
from resect.model.load import tokenizer_fingerprint
from resect.model.on_disk import Shelf
from resect.model.prunable import PrunableWeight, find_prunable
from resect.records import Encoded
from resect.weights.candidates import Candidates
from resect.weights.scores import ScoreMeta, Scores

Call = tuple[tuple[Any, ...], dict[str, Any]]
Batch = Sequence[Encoded]
# A weight, its values and its means over examples.
Scored = tuple[PrunableWeight, Tensor, dict[Kind, Tensor]]


@dataclass(frozen=True)
class _Store:
    """Hidden states on disk, by batch and place in the row of blocks."""

    folder: Path

    def put(self, batch: int, place: int, hidden: Tensor) -> None:
        save_file({"hidden": hidden.detach().contiguous()}, self._path(batch, place))

    def get(self, batch: int, place: int, device: torch.device) -> Tensor:
        hidden: Tensor = load_file(self._path(batch, place))["hidden"]
        return hidden.to(device)

    def drop(self, batch: int, place: int) -> None:
        self._path(batch, place).unlink()

    def _path(self, batch: int, place: int) -> Path:
        return self.folder / f"{batch}-{place}.safetensors"


def attribute_streamed(
    shelf: Shelf,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: AttributeSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    scratch: Path | None = None,
    processes: Processes = ALONE,
) -> dict[str, Scores]:
    """Score every prunable weight as `attribute_many` does, with one block in memory.

    Args:
        shelf: The model, from `open_shelf`.
        encoded: The examples.
        reductions: Names in `resect.attribution.methods.METHODS[settings.method]`.
        settings: How the pass is made. What it says of layers a pass, of checkpointing and of the
            place of the sums has no meaning here.
        on_progress: Called with blocks done and blocks in all, each counted twice.
        scratch: Folder for hidden states; None for the system's temporary folder.
        processes: The processes that share the examples; all of them call this and get the same
            scores.

    Raises:
        InputError: An example cannot be scored, a loss or gradient is not finite, or the method
            needs more than one pass.
        CoverageError: The blocks of the model do not stand in one plain row, or hold weights of an
            unknown kind, or mix the examples of a batch.
    """
    settings = settings or AttributeSettings()
    if settings.method == "integrated":
        raise InputError(
            "a model that is read from disk is scored in one pass",
            got="integrated, which needs several",
            fix="choose another method, or leave --stream out",
        )
    coverage = find_prunable(shelf.model, allow_partial=settings.allow_partial)
    check_examples(encoded, shelf.model)
    rules = {name: rule_of(settings.method, name) for name in reductions}
    sums = len({kind for rule in rules.values() for kind in rule.needs})
    tokens = streamed_tokens(
        shelf.model, encoded, settings, coverage, sums=sums, processes=processes
    )
    job = _Streaming(shelf, encoded, settings, rules, processes, tokens=tokens)
    job.on_progress = on_progress or job.on_progress
    metas = {name: _meta(job, name, settings.fraction(coverage.total)) for name in rules}
    found = {name: Candidates(meta.keep, coverage.total) for name, meta in metas.items()}
    with returned(), tempfile.TemporaryDirectory(prefix="resect-", dir=scratch) as folder:
        for scored in job.means(coverage.weights, _Store(Path(folder))):
            for name, rule in rules.items():
                _rank(scored, rule, found[name], keeps_weights=metas[name].ranks_targets)
            del scored  # or it would stay while the next block is run
    order = [place.name for weight in coverage.weights for place in weight.places]
    return {
        name: Scores({place: tensors[place] for place in order}, metas[name])
        for name, tensors in ((name, one.finish()) for name, one in found.items())
    }


def _rank(scored: Scored, rule: Rule, found: Candidates, *, keeps_weights: bool) -> None:
    weight, parameter, means = scored
    scores = rule.formula(parameter, means)
    if not bool(scores.isfinite().all()):
        raise InputError(f"the scores of {weight.name} are not finite")
    for place in weight.places:
        original = place.view(parameter) if keeps_weights else None
        found.add(place.name, place.view(scores), original)


def _meta(job: _Streaming, reduction: str, keep: float) -> ScoreMeta:
    settings = job.settings
    return ScoreMeta(
        method=settings.method,
        reduction=reduction,
        keep=keep,
        model_id=str(getattr(job.model, "name_or_path", "")),
        model_fingerprint=job.shelf.fingerprint(),
        tokenizer_fingerprint=tokenizer_fingerprint(job.shelf.tokenizer),
        data_hash=settings.data_hash,
        examples=len(job.encoded),
        tokens=sum(example.scored_tokens for example in job.encoded),
        format=settings.format,
        skip=settings.skip,
        category=settings.category,
        seed=settings.seed,
        streamed=True,
    )


class _Streaming:
    """One pass over the data, block by block."""

    def __init__(
        self,
        shelf: Shelf,
        encoded: Sequence[Encoded],
        settings: AttributeSettings,
        rules: Mapping[str, Rule],
        processes: Processes,
        *,
        tokens: int,
    ):
        self.shelf = shelf
        self.model = shelf.model
        self.encoded = encoded
        self.settings = settings
        self.wanted = {kind for rule in rules.values() for kind in rule.needs}
        self.processes = processes
        self.on_progress: Callable[[int, int], None] = lambda _done, _total: None
        self.device = next(self.model.get_input_embeddings().parameters()).device
        # Shares of examples that are sorted by length have almost the same lengths.
        order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
        mine = processes.share(order)
        self.batches: list[Batch] = list(batches(mine, size=settings.batch_size, tokens=tokens))
        # Whether the model indexes what its blocks give.
        self.tuples = False
        # For each batch, what each block is called with.
        self.calls: list[list[Call]] = []

    def means(self, weights: Sequence[PrunableWeight], store: _Store) -> Iterator[Scored]:
        """Yield each weight, its values and its means over examples, the last block first."""
        depth = len(self.shelf.blocks)
        owners = self._owners(weights)
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                hidden, calls = self._recorded(batch)
                self.calls.append(calls)
                store.put(number, 0, hidden)
            for at, block in enumerate(self.shelf.blocks):
                self._forwards(block, at, store)
                self.on_progress(at + 1, 2 * depth)
        self._end(store, depth)
        for at in reversed(range(depth)):
            block = self.shelf.blocks[at]
            with self.shelf.opened(block):
                sums = self._backwards(block, at, store, owners[at])
                for weight in owners[at]:
                    parameter = self.model.get_parameter(weight.name).detach()
                    yield weight, parameter, self._means_of(sums, weight)
                del sums
            self.on_progress(2 * depth - at, 2 * depth)

    def _owners(self, weights: Sequence[PrunableWeight]) -> list[list[PrunableWeight]]:
        """Return the weights of each block."""
        found = []
        for block in self.shelf.blocks:
            inside = {id(parameter) for parameter in block.parameters()}
            found.append(
                [one for one in weights if id(self.model.get_parameter(one.name)) in inside]
            )
        return found

    def _recorded(self, batch: Batch) -> tuple[Tensor, list[Call]]:
        """Return what `_record` does; find out by the first batch what blocks have to give."""
        try:
            return self._record(batch)
        except CoverageError as error:
            if self.tuples or self.calls:
                raise
            self.tuples = True
            try:
                return self._record(batch)
            except CoverageError:
                raise error from None

    def _record(self, batch: Batch) -> tuple[Tensor, list[Call]]:
        """Return what the first block gets, and how each block is called."""
        calls: list[Call] = []
        order: list[nn.Module] = []
        given: list[Tensor] = []
        last: list[Tensor] = []

        def stub(block: nn.Module) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, rest, named = _hidden_of(args, kwargs)
                if last and hidden is not last[0]:
                    raise _not_plain("something changes the hidden states between two blocks")
                if not last:
                    given.append(hidden)
                last[:] = [hidden]
                order.append(block)
                calls.append((rest, named))
                return (hidden, None) if self.tuples else hidden

            return forward

        with self._blocks_as(stub):
            batch_loss(self.model, batch, Head())
        if order != self.shelf.blocks:
            raise _not_plain("its blocks are not called once each, in their order")
        return given[0], calls

    @contextlib.contextmanager
    def _blocks_as(self, stub: Callable[[nn.Module], Callable[..., Any]]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self.shelf.blocks:
                stack.enter_context(forward_of(block, stub(block)))
            yield

    def _forwards(self, block: nn.Module, at: int, store: _Store) -> None:
        """Run all batches through one block."""
        with self.shelf.opened(block):
            for number in range(len(self.batches)):
                hidden = store.get(number, at, self.device)
                store.put(number, at + 1, _run(block, hidden, self.calls[number][at]))

    def _end(self, store: _Store, depth: int) -> None:
        """Put the gradient of the loss in the place of what the last block gave."""
        head = Head()
        for number, batch in enumerate(self.batches):
            leaf = store.get(number, depth, self.device).requires_grad_()

            def stub(block: nn.Module, leaf: Tensor = leaf) -> Callable[..., Any]:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    hidden = _hidden_of(args, kwargs)[0]
                    out = leaf if block is self.shelf.blocks[-1] else hidden
                    return (out, None) if self.tuples else out

                return forward

            with self._blocks_as(stub), torch.enable_grad():
                loss = batch_loss(self.model, batch, head)
                (gradient,) = torch.autograd.grad(loss, leaf)
            _look(gradient, batch)
            store.put(number, depth, gradient)

    def _backwards(
        self, block: nn.Module, at: int, store: _Store, weights: list[PrunableWeight]
    ) -> Sums:
        """Run all batches through one block and back; return the sums of its weights."""
        parameters = {one.name: self.model.get_parameter(one.name) for one in weights}
        sums = Sums(parameters, self.wanted)
        singly = self.settings.batch_size == 1 and bool(EACH & self.wanted)
        with observing(self.model, weights, sums, singly=singly) as watch:
            for number, batch in enumerate(self.batches):
                hidden = store.get(number, at, self.device).requires_grad_()
                gradient = store.get(number, at + 1, self.device)
                watch.begin(batch)
                with torch.enable_grad():
                    out = _run(block, hidden, self.calls[number][at])
                    _back(watch, out, gradient)
                if hidden.grad is None:
                    raise _not_plain("a block does not depend on what it is given")
                _look(hidden.grad, batch)
                store.put(number, at, hidden.grad)
                store.drop(number, at + 1)
        mixed = self.processes.either([one.name in sums.mixed for one in weights])
        if any(mixed):
            raise CoverageError(
                "the examples of a batch cannot be told apart in some weights",
                got=f"{weights[mixed.index(True)].name} and {sum(mixed) - 1} more",
                fix="score one example at a time: --batch-size 1",
            )
        return sums

    def _means_of(self, sums: Sums, weight: PrunableWeight) -> dict[Kind, Tensor]:
        count = len(self.encoded)
        found: dict[Kind, Tensor] = {}
        # Sets have another order in every process; sums must meet those of the same name.
        for kind in sorted(sums.totals):
            found[kind] = sums.totals[kind].pop(weight.name)
            self.processes.add(found[kind])
            found[kind].div_(count)
        if "inputs" in self.wanted:
            own = sums.inputs.get(weight.name)
            unseen = bool(self.batches) and own is None
            if self.processes.either([unseen])[0]:
                raise InputError(
                    "the inputs of some weights cannot be told apart by example",
                    got=weight.name,
                    fix="choose another method",
                )
            axis = 1 if weight.layout == "in_out" else 0
            if own is None:  # a process without examples
                own = torch.zeros(weight.shape[1 - axis], device=self.device)
            self.processes.add(own)
            found["inputs"] = own.div(count).unsqueeze(axis)
        if "noise" in self.wanted:
            found["noise"] = noise_of(weight, self.settings.seed)
        return found


def _hidden_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Take the hidden states out of the arguments of a block."""
    if args and isinstance(args[0], Tensor):
        hidden, rest, named = args[0], args[1:], dict(kwargs)
    elif isinstance(kwargs.get("hidden_states"), Tensor):
        named = dict(kwargs)
        hidden, rest = named.pop("hidden_states"), args
    else:
        raise _not_plain("a block is not called with hidden states first")
    others = [value for value in (*rest, *named.values()) if isinstance(value, Tensor)]
    if any(value.requires_grad for value in others):
        raise _not_plain("a block is given more than one tensor that carries a gradient")
    return hidden, rest, named


def _run(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    rest, named = call
    out = block(hidden, *rest, **named)
    out = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(out, Tensor) or out.shape != hidden.shape:
        raise _not_plain("a block gives something else than hidden states")
    return out


def _back(watch: Watch, out: Tensor, gradient: Tensor) -> None:
    # The scalar whose gradient at `out` is the given one.
    watch.backward((out.float() * gradient.float()).sum())


def _look(gradient: Tensor, batch: Batch) -> None:
    if not bool(gradient.isfinite().all()):
        bad = (~gradient.flatten(1).isfinite().all(dim=1)).nonzero()[0]
        raise not_finite("gradient", batch[int(bad)])


def _not_plain(why: str) -> CoverageError:
    return CoverageError(
        "the model cannot be scored block by block",
        got=why,
        allowed="blocks in one plain row, each given the hidden states of the one before",
        fix="score it in memory: leave --stream out",
    )
