"""What asking many cuts costs, against an earlier build: ratios of arms that take turns.

    python benchmarks/cuts.py --before DIR/src [--quick] [--size smollm2] [--case few]
        [--arms now,together] [--cuts 16] [--rounds 2] [--model FOLDER] [-o FILE]

A random Llama of the shape of SmolLM2-135M or of the organism's size, or the checkpoint FOLDER, is
cut in many ways, half of them nested cuts of one ranking and half random ones, of up to 1 % of its
weights. Cases: greedy replies to 64 prompts a cut, and to four; the likelihood of 400 answers with
the divergence from the intact model. Arms, each in a process of its own with one thread:

    before    the build of --before, with weights of float32
    now       this build; an arm whose name holds one of these words does so:
              together      16 cuts share a pass (`evaluation.together`)
              continuous    replies are decoded so (`evaluation.decoding`)
              bfloat16      the weights are of that type

A ratio is taken within a round, of seconds of processor time. The model is loaded, its cuts are
made and it is tried before. Tokens that differ from those of the earlier build are counted, and how
far likelihoods are from its own. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module, util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from decode import ANSWER, SIZES, Served, Size, different, keep, model_of, size_of
from words import tokenizer

HERE = Path(__file__).resolve()
TOGETHER, CONTINUOUS, NARROW = "together", "continuous", "bfloat16"
ARMS = (
    "now",
    "together",
    "together continuous",
    "bfloat16",
    "bfloat16 continuous",
    "bfloat16 together continuous",
)
# Cuts that share a pass, and the largest share of the weights that a cut takes.
IN_A_PASS, LARGEST = 16, 0.01
# Words of prompts and answers: of the shortest and of the longest.
LENGTHS = (24, 48)


class Case(NamedTuple):
    """What is asked of all cuts.

    Attributes:
        name: Shown in tables.
        prompts: How many.
        tokens: Most new tokens of a reply; 0 measures likelihoods.
    """

    name: str
    prompts: int
    tokens: int


CASES = (
    Case("replies to 64 prompts", 64, 48),
    Case("replies to few prompts", 4, 48),
    Case("likelihood of 400 answers", 400, 0),
)
QUICK = (Case("replies", 5, 3), Case("likelihood", 5, 0))
SHAPES = {"smollm2": SIZES[2], "organism": SIZES[0]}
TINY = Size("tiny", 16, 24, 2, 2, 1, 64)


class Build:
    """What either build calls the same things."""

    def __init__(self) -> None:
        """Find out which build this is."""
        self.now = util.find_spec("resect.evaluation") is not None

    def named(self, name: str, before: str) -> Any:
        """Return a module by what this build calls it, or the earlier one."""
        return import_module(f"resect.{name if self.now else before}")


def questions(size: Size, count: int) -> Any:
    """Return prompts with answers, of words drawn at random."""
    draw = torch.Generator().manual_seed(count)

    def text() -> str:
        length = int(torch.randint(LENGTHS[0], LENGTHS[1] + 1, (1,), generator=draw))
        words = torch.randint(2, size.words, (length,), generator=draw).tolist()
        return " ".join(f"w{word}" for word in words)

    example = import_module("resect.records").Example
    rows = tuple(example(str(number), text(), text()) for number in range(count))
    return import_module("resect.data.load").BehaviourSet("benchmark", rows, f"cuts/{count}")


@lru_cache(maxsize=1)
def cuts(size: Size, count: int) -> list[Any]:
    """Return nested cuts of one random ranking, and as many random ones of the same sizes."""
    masks = Build().named("weights.mask", "mask")
    weights = {
        name: parameter.detach()
        for name, parameter in model_of(size).named_parameters()
        if ".layers." in name and parameter.dim() == 2
    }
    shares = [LARGEST * (step + 1) / -(-count // 2) for step in range(-(-count // 2))]
    ways = [(share, nested) for share in shares for nested in (True, False)][:count]
    return [
        masks.Mask(
            {
                name: _removed(masks, weight, share, 0 if nested else 1 + number, place)
                for place, (name, weight) in enumerate(weights.items())
            },
            {},
        )
        for number, (share, nested) in enumerate(ways)
    ]


def _removed(masks: Any, weight: torch.Tensor, share: float, ranking: int, place: int) -> Any:
    """Return the first weights of a random order, of which no more is drawn than a cut takes."""
    draw = torch.Generator().manual_seed(1000 * ranking + place)
    drawn = torch.randint(weight.numel(), (int(2 * LARGEST * weight.numel()),), generator=draw)
    drawn = drawn.unique()
    order = drawn[torch.randperm(len(drawn), generator=draw)]
    index = order[: int(share * weight.numel())].sort().values
    rounds = torch.zeros(len(index), dtype=torch.uint8)
    return masks.MaskTensor(tuple(weight.shape), index, weight.flatten()[index].clone(), rounds)


def ask(arm: str, size: Size, case: Case, count: int) -> dict[str, Any]:
    """Ask all cuts by the build of this process; return seconds, replies and likelihoods."""
    build = Build()
    asking = build.named("evaluation.ask", "evaluate")
    decoding = build.named("evaluation.decode", "generate").GenerationSettings(case.tokens or 1, 16)
    if CONTINUOUS in arm:
        decoding = import_module("dataclasses").replace(decoding, decoding=CONTINUOUS)
    settings = asking.EvaluationSettings(format="raw", generation=decoding)
    probes = {"refusal" if case.tokens else "likelihood": questions(size, case.prompts)}
    loaded = import_module("resect.model").LoadedModel(model_of(size), tokenizer(size.words))
    masks, several = cuts(size, count), []
    start = time.process_time()
    if TOGETHER in arm:
        routes = import_module("resect.edit.trial").routes_of(loaded.model, range(2, size.words))
        intact = import_module("resect.evaluation.divergence").Intact()
        for first in range(0, count, IN_A_PASS):
            group = masks[first : first + IN_A_PASS]
            several += asking.ask_together(loaded, probes, settings, group, routes, intact=intact)
    elif build.now:
        intact = import_module("resect.evaluation.divergence").Intact()
        several = [asking.ask(loaded, probes, settings, mask, intact=intact) for mask in masks]
    else:
        several = [asking.ask(*loaded, probes, settings, mask) for mask in masks]
    seconds = time.process_time() - start
    replies = [reply for of_cut in several for reply in of_cut]
    words = [reply.text.split() for reply in replies] if case.tokens else []
    nlls = [] if case.tokens else [reply.nll for reply in replies]
    return {"seconds": seconds, "words": words, "nlls": nlls}


class Arm(Served):
    """An arm, with the build of a folder."""

    def __init__(self, arm: str, source: Path):
        """Start it."""
        command = [sys.executable, str(HERE), "--serve", arm]
        super().__init__(arm, command, {"PYTHONPATH": str(source)})

    def asked(self, size: Size, case: Case, count: int) -> Any:
        """Return what `ask` does, by this build."""
        dtype = NARROW if NARROW in self.arm else "float32"
        return self.answer({"size": size._replace(dtype=dtype), "case": case, "count": count})


def serve(arm: str) -> None:
    """Answer requests by the build of this process."""
    torch.set_num_threads(1)
    if Build().now:
        import_module("resect.machine.products").choose_products()
        import_module("resect.model").take_path()
    for line in sys.stdin:
        request = json.loads(line)
        answer = ask(arm, size_of(request["size"]), Case(*request["case"]), request["count"])
        print(ANSWER + json.dumps(answer), flush=True)


def measure(arms: Sequence[Arm], size: Size, case: Case, count: int, rounds: int) -> dict[str, Any]:
    """Measure the arms of a case in turn, after a short one that tries the model."""
    answers: dict[str, Any] = {}
    for arm in arms:
        arm.asked(size, case._replace(prompts=3, tokens=min(case.tokens, 2)), count)
    seconds: list[dict[str, float]] = []
    for number in range(rounds):
        took = {}
        for arm in arms[:: 1 if number % 2 == 0 else -1]:
            answers[arm.arm] = arm.asked(size, case, count)
            took[arm.arm] = answers[arm.arm]["seconds"]
        seconds.append(took)
        print(case.name, {name: round(spent, 2) for name, spent in took.items()}, flush=True)
    first, *later = answers.values()
    return {
        "case": case.name,
        "cuts": count,
        "rounds": seconds,
        "tokens": sum(map(len, first["words"])),
        "arms": {
            arm.arm: {
                "ratios": sorted(took[arms[0].arm] / took[arm.arm] for took in seconds),
                "different": different(first["words"], answer["words"]),
                "nll": max(
                    (abs(a - b) for a, b in zip(first["nlls"], answer["nlls"], strict=True)),
                    default=None,
                ),
            }
            for arm, answer in zip(arms[1:], later, strict=True)
        },
    }


def table(measured: Sequence[dict[str, Any]]) -> str:
    """Return the ratios as Markdown."""
    lines = [
        "| case | cuts | arm | times as fast as before, median (range) | what differs |",
        "|---|--:|---|---|---|",
    ]
    for row in measured:
        for arm, facts in row["arms"].items():
            ratios = facts["ratios"]
            off = f"{facts['different']:,} of {row['tokens']:,} tokens"
            if facts["nll"] is not None:
                off = f"NLLs by {facts['nll']:.1g} nats"
            lines.append(
                f"| {row['case']} | {row['cuts']} | {arm} | {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {off} |"
            )
    return "\n".join(lines)


def chosen(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases that are wanted."""
    for case in QUICK if options.quick else CASES:
        if options.case in case.name:
            yield case


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=Path, help="src folder of an earlier build")
    parser.add_argument("--quick", action="store_true", help="a tiny size that shows it runs")
    parser.add_argument("--size", choices=list(SHAPES), default="smollm2", help="of which model")
    parser.add_argument(
        "--model", default="", help="checkpoint folder in the place of a random one"
    )
    parser.add_argument("--case", default="", help="cases whose name holds this")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas between")
    parser.add_argument("--cuts", type=int, default=16, help="variants")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each case")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="write all numbers there, as JSON")
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
        return 0
    size = TINY if options.quick else SHAPES[options.size]._replace(folder=options.model)
    source = HERE.parents[1] / "src"
    arms = [Arm("before", options.before or source)]
    arms += [Arm(name, source) for name in options.arms.split(",")]
    measured = [measure(arms, size, case, options.cuts, options.rounds) for case in chosen(options)]
    for arm in arms:
        arm.end()
    print(table(measured))
    keep(options.output, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
