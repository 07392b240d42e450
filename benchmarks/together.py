"""What many cuts cost together, against one by one: ratios of arms that take turns in one process.

    python benchmarks/together.py [--quick] [--size smollm2] [--dtype bfloat16] [--case few]
        [-o FILE]

A random Llama of the organism's size, or of that of SmolLM2-135M, is cut in 64 ways, half of them
nested cuts of one ranking and half random ones. Three cases: likelihoods of many answers,
likelihoods of few prompts a cut, and greedy replies to few prompts a cut. Each round asks all cuts
one by one (the default) and together, in turn and in the other order the next time; a ratio is
taken within a round. Beside it stand the rows of a pass, and what of replies and likelihoods
differs between the two. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from words import tokenizer

from resect.data.load import BehaviourSet
from resect.edit.trial import routes_of
from resect.evaluation.ask import EvaluationSettings, ask, ask_together
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.drift import drift
from resect.files.writing import write_json
from resect.machine.products import choose_products
from resect.model import LoadedModel, prunable_tensors, take_path
from resect.records import Example, Reply
from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor

HERE = Path(__file__).parent


class Size(NamedTuple):
    """A model and its questions.

    Attributes:
        hidden: Width; that of the MLP is three times it.
        layers: Blocks.
        words: Words of the vocabulary.
        cuts: Variants, half nested and half random.
        together: Variants that share a pass.
        many: Answers of the case of many.
        few: Prompts of the cases of few.
        length: Words of a prompt and of an answer.
        tokens: New tokens of a reply.
        rounds: Rounds of each case.
    """

    hidden: int = 128
    layers: int = 4
    words: int = 512
    cuts: int = 64
    together: int = 16
    many: int = 400
    few: int = 4
    length: int = 12
    tokens: int = 24
    rounds: int = 5


# By the name of the model whose size it is.
SIZES = {
    "organism": Size(),
    "smollm2": Size(576, 30, 49152, length=24, tokens=48, rounds=2),
}
TINY = Size(16, 2, 64, cuts=6, together=4, many=5, few=2, length=4, tokens=3, rounds=1)
# Largest share of the weights that a cut takes.
LARGEST = 0.01


def build(size: Size, dtype: str = "float32") -> LoadedModel:
    """Return a random model with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.words,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=2 / parameter.shape[-1] ** 0.5)
    return LoadedModel(model.to(getattr(torch, dtype)), tokenizer(size.words))


def questions(size: Size, count: int) -> BehaviourSet:
    """Return prompts with answers, of words drawn at random."""
    draw = rng("benchmark/together", count)

    def text() -> str:
        return " ".join(f"w{word}" for word in draw.integers(2, size.words, size=size.length))

    examples = tuple(
        Example(id=str(number), prompt=text(), completion=text()) for number in range(count)
    )
    return BehaviourSet("benchmark", examples, hash=f"benchmark/{count}")


def cuts(model: Any, size: Size) -> list[Mask]:
    """Return nested cuts of one random ranking, and as many random ones of the same sizes."""
    tensors = prunable_tensors(model)
    shares = [LARGEST * (step + 1) / (size.cuts // 2) for step in range(size.cuts // 2)]
    return [
        _cut(tensors, share, "ranking" if nested else f"random/{number}")
        for nested in (True, False)
        for number, share in enumerate(shares)
    ]


def _cut(tensors: Mapping[str, torch.Tensor], share: float, label: str) -> Mask:
    entries = {}
    for name, tensor in tensors.items():
        order = rng(f"benchmark/{label}/{name}", 0).permutation(tensor.numel())
        index = torch.from_numpy(order[: int(share * tensor.numel())]).sort().values
        value = tensor.flatten()[index].clone()
        rounds = torch.zeros(len(index), dtype=torch.uint8)
        entries[name] = MaskTensor(tuple(tensor.shape), index, value, rounds)
    return Mask(entries, {})


class Case(NamedTuple):
    """What is asked of all cuts."""

    name: str
    probes: dict[str, BehaviourSet]
    settings: EvaluationSettings


def cases(size: Size) -> list[Case]:
    """Return the three cases."""
    likelihood = EvaluationSettings(
        format="raw", measure="likelihood", generation=GenerationSettings(batch_size=16)
    )
    replies = EvaluationSettings(format="raw", generation=GenerationSettings(size.tokens, 16))
    few = questions(size, size.few)
    return [
        Case("likelihood, many answers", {"answers": questions(size, size.many)}, likelihood),
        Case("likelihood, few prompts", {"answers": few}, likelihood),
        Case("replies, few prompts", {"refusal": few}, replies),
    ]


Arm = Callable[[], list[list[Reply]]]


def arms(loaded: LoadedModel, masks: list[Mask], case: Case, size: Size) -> dict[str, Arm]:
    """Return the two ways of asking; the trial of the model is part of the joint one."""

    def alone() -> list[list[Reply]]:
        return [ask(loaded, case.probes, case.settings, mask) for mask in masks]

    def together() -> list[list[Reply]]:
        routes = routes_of(loaded.model, range(2, size.words))
        groups = [masks[n : n + size.together] for n in range(0, len(masks), size.together)]
        return [
            replies
            for group in groups
            for replies in ask_together(loaded, case.probes, case.settings, group, routes)
        ]

    return {"one by one": alone, "together": together}


def widest(loaded: LoadedModel, arm: Arm) -> int:
    """Return the largest number of rows that the model was called with."""
    rows = [0]
    module: nn.Module = dict(loaded.model.named_modules())[""]
    handle = module.register_forward_pre_hook(
        lambda _module, _args, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    try:
        arm()
    finally:
        handle.remove()
    return max(rows)


def measure(loaded: LoadedModel, masks: list[Mask], case: Case, size: Size) -> dict[str, Any]:
    """Measure the arms of a case in turn."""
    ways = arms(loaded, masks, case, size)
    rows = {name: widest(loaded, arm) for name, arm in ways.items()}  # and nothing is new after it
    rounds: list[dict[str, float]] = []
    replies: dict[str, list[list[Reply]]] = {}
    for number in range(size.rounds):
        seconds = {}
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            replies[name] = ways[name]()
            seconds[name] = time.perf_counter() - start
        rounds.append(seconds)
        print(case.name, {name: round(took, 2) for name, took in seconds.items()}, flush=True)
    ratios = sorted(seconds["one by one"] / seconds["together"] for seconds in rounds)
    drifts = [
        drift(loaded.tokenizer, before, after)
        for before, after in zip(*replies.values(), strict=True)
    ]
    nlls = [each.nll for each in drifts if each.nll is not None]
    return {
        "case": case.name,
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "largest": ratios[-1],
        "rounds": rounds,
        "rows": rows,
        "tokens": sum(each.tokens for each in drifts),
        "different": sum(each.different for each in drifts),
        "nll": max(nlls, default=None),
    }


def table(measured: list[dict[str, Any]]) -> str:
    """Return the ratios as Markdown."""
    lines = [
        "| case | times as fast, median (range) | rows a pass | tokens that differ | NLLs |",
        "|---|---|---|---|---|",
    ]
    for row in measured:
        nll = "" if row["nll"] is None else f"{row['nll']:.1g}"
        lines.append(
            f"| {row['case']} | {row['ratio']:.2f} ({row['least']:.2f} to {row['largest']:.2f}) | "
            f"{' and '.join(map(str, row['rows'].values()))} | {row['different']} of "
            f"{row['tokens']:,} | {nll} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny size that shows it runs")
    parser.add_argument("--size", choices=list(SIZES), default="organism", help="of which model")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--case", default="", help="cases whose name holds this")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("-o", "--output", type=Path, help="write all numbers there, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.quick:
        choose_products()
        take_path()
    size = TINY if options.quick else SIZES[options.size]
    loaded = build(size, options.dtype)
    masks = cuts(loaded.model, size)
    chosen = [case for case in cases(size) if options.case in case.name]
    measured = [measure(loaded, masks, case, size) for case in chosen]
    print(table(measured))
    if options.output is not None:
        facts = {
            "torch": torch.__version__,
            "machine": platform.processor(),
            "size": size._asdict(),
        }
        write_json(options.output, facts | {"threads": options.threads, "cases": measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
