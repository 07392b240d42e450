"""What `benchmarks/score.py` measures, each in a process of its own.

naive          forward and backward, eight examples a batch in the given order, padded to the
               longest, logits of every token, gradients of all parameters
signed, ...    `resect.attribution`, one reduction, from the examples to ranked scores
naive, our products    the same with products as the arms of resect make them
per_layer      the published algorithm: for every layer and every example one forward and
               backward pass in which that layer's weights alone have gradients

python benchmarks/arms.py JSON      one measurement, whose facts are the last line printed
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from resect.attribution.choices import cpu_tokens
from resect.attribution.engine import attribute_many
from resect.attribution.head import Head, at_once
from resect.attribution.loss import batch_loss, batches
from resect.attribution.plan import shape_of
from resect.attribution.settings import AttributeSettings
from resect.model.products import take_path
from resect.model.prunable import blocks, find_prunable
from resect.records import Encoded
from resect.stats import rng
from resect.weights.scores import Scores

REDUCTIONS = ("signed", "abs_of_mean", "mean_of_abs")
NAIVE, NAIVE_BY_OURS = "naive", "naive, our products"
# These are what a user has without resect.
BY_TORCH = (NAIVE, "per_layer")
# What is asked of a process beside the time of an arm.
UNTIMED = ("parts", "operations")
NAIVE_BATCH = 8


class Case(NamedTuple):
    """A random Llama and its examples.

    Attributes:
        name: Shown in tables.
        hidden: Width; the inner width of the feed-forward part is 2.75 times that.
        layers: Number of blocks.
        vocabulary: Rows of the embedding, which is tied to the head.
        examples: Number of examples; the second half of the tokens of each is scored.
        lengths: Tokens of the shortest and of the longest.
    """

    name: str
    hidden: int
    layers: int
    vocabulary: int
    examples: int
    lengths: tuple[int, int] = (48, 128)


def build(case: Case) -> Any:
    """Return the model in fp32; the same weights for the same case in every process."""
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.hidden * 11 // 4,
        num_hidden_layers=case.layers,
        num_attention_heads=max(1, case.hidden // 64),
        num_key_value_heads=max(1, case.hidden // 64),
        max_position_embeddings=case.lengths[1],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def tokenizer() -> Any:
    """Return a tokenizer for the fingerprint of artefacts; it encodes nothing here."""
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def examples(case: Case) -> list[Encoded]:
    """Draw random tokens of random lengths."""
    draw = rng("benchmark/score", 0)
    encoded = []
    for number in range(case.examples):
        length = int(draw.integers(case.lengths[0], case.lengths[1] + 1))
        ids = tuple(map(int, draw.integers(case.vocabulary, size=length)))
        encoded.append(Encoded(f"e{number}", ids, length // 2))
    return encoded


def naive(model: Any, encoded: Sequence[Encoded]) -> None:
    """Do what any training loop does, without an optimiser."""
    for start in range(0, len(encoded), NAIVE_BATCH):
        rows = encoded[start : start + NAIVE_BATCH]
        width = max(len(row.input_ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for number, row in enumerate(rows):
            length = len(row.input_ids)
            ids[number, :length] = torch.tensor(row.input_ids)
            attention[number, :length] = 1
            labels[number, row.first_scored : length] = ids[number, row.first_scored : length]
        model.zero_grad(set_to_none=False)
        ids, attention, labels = (part.to(model.device) for part in (ids, attention, labels))
        model(
            input_ids=ids, attention_mask=attention, labels=labels, use_cache=False
        ).loss.backward()


def engine(model: Any, encoded: Sequence[Encoded], reduction: str) -> Scores:
    """Score with resect, candidates for every q and p up to 1e-2."""
    settings = AttributeSettings(keep=1e-2)
    scores = attribute_many(model, tokenizer(), encoded, reductions=(reduction,), settings=settings)
    return scores[reduction]


def per_layer(model: Any, encoded: Sequence[Encoded]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean gradients and mean absolute gradients, one layer and one example at a time.

    Both means are kept, so that one run checks every reduction; the published code keeps one.
    """
    needed = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    means = {}
    for layer, block in enumerate(model.model.layers):
        weights = {
            f"model.layers.{layer}.{name}.weight": module.weight
            for name, module in block.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        sums = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        for example in encoded:
            ids = torch.tensor([example.input_ids])
            labels = ids.clone()
            labels[:, : example.first_scored] = -100
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            for name, weight in weights.items():
                sums[name][0].add_(weight.grad)
                sums[name][1].add_(weight.grad.abs_())
                weight.grad = None
        for weight in weights.values():
            weight.requires_grad_(False)
        for name, pair in sums.items():
            means[name] = (pair[0].div_(len(encoded)), pair[1].div_(len(encoded)))
    for parameter, need in zip(model.parameters(), needed, strict=True):
        parameter.requires_grad_(need)
    return means


def oracle_scores(
    model: Any, means: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Return scores by reduction and name from their definitions."""
    scores: dict[str, dict[str, Tensor]] = {reduction: {} for reduction in REDUCTIONS}
    for name, (mean, absolute) in means.items():
        weight = model.get_parameter(name).detach()
        scores["signed"][name] = -(weight * mean)
        scores["abs_of_mean"][name] = (weight * mean).abs()
        scores["mean_of_abs"][name] = weight.abs() * absolute
    return scores


def run_arm(arm: str, model: Any, encoded: Sequence[Encoded]) -> Any:
    """Run one arm by name."""
    if arm in (NAIVE, NAIVE_BY_OURS):
        return naive(model, encoded)
    if arm == "per_layer":
        return per_layer(model, encoded)
    return engine(model, encoded, arm)


def memory_parts(model: Any, encoded: Sequence[Encoded]) -> dict[str, int]:
    """Return the bytes that scoring cannot do without.

    Activations are what autograd saves for the backward pass of the largest batch, counted once a
    storage and without the weights, and two more arrays of the size of the scored logits: their
    gradient, and that of their softmax. Where logits are made in pieces, which are not saved, it is
    three arrays of a piece.
    """
    coverage = find_prunable(model)
    tokens = cpu_tokens(shape_of(model, coverage))
    batch = next(batches(encoded, size=None, tokens=tokens))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = batch_loss(model, batch, Head())
    del loss
    scored = sum(example.scored_tokens for example in batch)
    logits = 2 * scored if scored <= at_once(model) else 3 * at_once(model)
    layers = [
        sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks(model)
    ]
    return {
        "model": sum(p.numel() * p.element_size() for p in model.parameters()),
        "accumulator": 4 * coverage.total,
        "activations": sum(saved.values()) + 4 * logits * model.config.vocab_size,
        "gradient": max(layers),
    }


def operations(model: Any, encoded: Sequence[Encoded]) -> dict[str, int]:
    """Return the multiplications and additions of each arm's products with matrices.

    Attention of the CPU is one call that the counter does not see into: a hundredth of the whole.
    """
    counts = {}
    for arm in ("naive", *REDUCTIONS):
        with FlopCounterMode(display=False) as counter:
            run_arm(arm, model, encoded)
        counts[arm] = counter.get_total_flops()
    return counts


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Return the most bytes this process has held in memory at once."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(
    case: Case, arm: str, folder: Path | None = None, longest: int | None = None
) -> dict[str, Any]:
    """Time one arm in this process.

    Args:
        case: Model and examples.
        arm: `naive`, the same with products as ours are made, a reduction, `per_layer`, or,
            measured without a clock, `parts` for the sizes of what is needed and `operations` for
            what the products of each arm take.
        folder: Where the scores go, if they are wanted.
        longest: Only so many examples, the longest; None for all.

    Returns:
        `seconds`; `peak` and `base` in bytes, the base taken before there was a model; the
        model's parameters and the tokens.
    """
    # Libraries load their code when it first runs; a tiny model brings that into the base.
    tiny = Case("warm-up", 64, 2, 64, 4, (8, 16))
    run_arm("naive", build(tiny), examples(tiny))
    run_arm("naive" if arm in UNTIMED else arm, build(tiny), examples(tiny))
    base = psutil.Process().memory_info().rss
    model, encoded = build(case), examples(case)
    encoded = sorted(encoded, key=lambda row: -len(row.input_ids))[:longest] if longest else encoded
    measured: dict[str, Any] = {
        "arm": arm,
        "case": case.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": sum(len(example.input_ids) for example in encoded),
    }
    if arm == "parts":
        return measured | {
            "bytes": memory_parts(model, encoded),
            "prunable": find_prunable(model).total,
        }
    if arm == "operations":
        return measured | {"operations": operations(model, encoded)}
    if arm != "per_layer":  # whose first layer of many is warm-up enough
        run_arm(arm, model, encoded[:2])
    _reset_peak()
    start = time.perf_counter()
    result = run_arm(arm, model, encoded)
    measured |= {"seconds": time.perf_counter() - start, "peak": _peak(), "base": base}
    if folder is not None and isinstance(result, Scores):
        result.save(folder / f"{arm}.safetensors")
    elif folder is not None and result is not None:
        for reduction, scores in oracle_scores(model, result).items():
            save_file(scores, folder / f"oracle-{reduction}.safetensors")
    return measured


def growth(cases: dict[str, list[tuple[float, Case]]], repeats: int) -> list[dict[str, Any]]:
    """Time cases that grow along an axis, interleaved in this process.

    Args:
        cases: Axis to sizes along it and cases.
        repeats: Rounds over all cases.

    Returns:
        A row for each axis, size and reduction with the median of `seconds`.
    """
    prepared = {case: (build(case), examples(case)) for rows in cases.values() for _, case in rows}
    times: dict[tuple[Case, str], list[float]] = {}
    for turn in range(repeats + 1):
        for case, (model, encoded) in prepared.items():
            for reduction in ("signed", "mean_of_abs"):
                start = time.perf_counter()
                engine(model, encoded, reduction)
                if turn:  # the first is warm-up
                    times.setdefault((case, reduction), []).append(time.perf_counter() - start)
    return [
        {
            "axis": axis,
            "size": size,
            "reduction": reduction,
            "seconds": statistics.median(times[case, reduction]),
        }
        for axis, rows in cases.items()
        for reduction in ("signed", "mean_of_abs")
        for size, case in rows
    ]


def case_of(fields: Sequence[Any]) -> Case:
    """Return the case that went through JSON."""
    return Case(*fields[:5], lengths=tuple(fields[5]))


def main() -> None:
    """Do what the JSON says and print what was found."""
    request = json.loads(sys.argv[1])
    if request.get("arm") not in BY_TORCH:
        take_path()
    torch.set_num_threads(request.get("threads") or os.cpu_count() or 1)
    answer: Any
    if "growth" in request:
        cases = {
            axis: [(size, case_of(case)) for size, case in rows]
            for axis, rows in request["growth"].items()
        }
        answer = growth(cases, request["repeats"])
    else:
        folder = Path(request["folder"]) if request.get("folder") else None
        answer = measure(case_of(request["case"]), request["arm"], folder, request.get("longest"))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
