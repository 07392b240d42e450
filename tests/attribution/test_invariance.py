"""What must not matter does not: batches, padding, order, processes, and where sums are kept."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from launched import Found, assert_same, base, environment, run
from resect.attribution import choices, passes
from resect.attribution.choices import planned
from resect.attribution.settings import Pass
from resect.machine.memory import Free
from resect.machine.processes import Processes
from resect.model import find_prunable
from resect.records import CausalModel, Encoded
from resect.weights.scores import Scores
from shared_work import COUNTS, EXAMPLES, FEW, MODELS, REDUCTIONS

GRADIENT = ("signed", "opposite", "abs_of_mean")


def shuffled(encoded: Sequence[Encoded]) -> list[Encoded]:
    order = list(encoded)
    random.Random(0).shuffle(order)
    return order


def unsorted_batches(
    encoded: Sequence[Encoded], *, size: int | None, tokens: int
) -> Iterator[tuple[Encoded, ...]]:
    order = shuffled(encoded)
    for start in range(0, len(order), 2):
        yield tuple(order[start : start + 2])


def left_padded_loss(model: CausalModel, batch: Sequence[Encoded], _head: object) -> torch.Tensor:
    """Twin of `batch_loss` that pads on the left, counts positions itself and takes all logits."""
    width = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, width - len(example.input_ids) :] = torch.tensor(example.input_ids)
        attention[row, width - len(example.input_ids) :] = 1
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions).logits
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    loss = torch.zeros(())
    for row, example in enumerate(batch):
        for position in range(width - example.scored_tokens, width):
            loss = loss - log_probs[row, position - 1, ids[row, position]] / example.scored_tokens
    return loss


# A small budget makes batches of one, a large one a single batch. The long example pads all others.
LONG = replace(tiny.examples(1, 9, 40)[0], id="long", weight=0.0)
Change = Callable[[CausalModel, list[Encoded]], Found]
CHANGES: dict[str, Change] = {
    "batches of one": lambda model, encoded: run(model, encoded, batch_size=1),
    "batches of three": lambda model, encoded: run(model, encoded, batch_size=3),
    "one batch": lambda model, encoded: run(model, encoded, batch_size=100),
    "budget of 8 tokens": lambda model, encoded: run(model, encoded, batch_tokens=8),
    "budget of 25 tokens": lambda model, encoded: run(model, encoded, batch_tokens=25),
    "order": lambda model, encoded: run(model, shuffled(encoded), batch_size=2),
    "much padding": lambda model, encoded: run(model, [*encoded, LONG]),
    "layers one by one": lambda model, encoded: run(model, encoded, layers_per_pass=1),
    "sums on the CPU": lambda model, encoded: run(model, encoded, accumulator="cpu"),
    "sums on the device": lambda model, encoded: run(model, encoded, accumulator="device"),
    "activations again": lambda model, encoded: run(model, encoded, checkpoint=True),
    "all at once": lambda model, encoded: run(
        model,
        shuffled(encoded),
        batch_size=2,
        layers_per_pass=1,
        checkpoint=True,
        accumulator="cpu",
    ),
}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_that_should_not_matter_changes_scores(change: str, architecture: str) -> None:
    scores = CHANGES[change](tiny.build(architecture), tiny.examples(EXAMPLES))
    # The mean of the padded run has one example more.
    factor = (EXAMPLES + 1) / EXAMPLES if change == "much padding" else 1.0
    assert_same(scores, base(architecture), factor)


@pytest.mark.parametrize("architecture", MODELS)
def test_bucketing_does_not_matter(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "batches", unsorted_batches)
    scores = run(tiny.build(architecture), tiny.examples(EXAMPLES))
    assert_same(scores, base(architecture))


@pytest.mark.parametrize("architecture", [*MODELS, "gpt2"])
def test_the_side_of_the_padding_does_not_matter(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: base(architecture)[name] for name in GRADIENT}
    monkeypatch.setattr(passes, "batch_loss", left_padded_loss)
    # Sums over single examples count on padding on the right, where `batch_loss` puts it.
    assert_same(run(tiny.build(architecture), tiny.examples(EXAMPLES), GRADIENT), expected)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the scores of two and four processes."""
    folder = tmp_path_factory.mktemp("shared")
    script = Path(__file__).parents[1] / "shared_work.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return folder


def load(folder: Path, name: str, rank: int, reductions: tuple[str, ...] = REDUCTIONS) -> Found:
    return {
        reduction: Scores.load(folder / f"{name}-{reduction}-{rank}.scores.safetensors")
        for reduction in reductions
    }


WAYS = {"shared": REDUCTIONS, "sharded": GRADIENT, "streamed": REDUCTIONS}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_processes_do_not_matter(way: str, count: int, architecture: str, shared: Path) -> None:
    """Examples shared, weights sharded (FSDP2), blocks read from disk: scores, masks and facts."""
    expected = {name: base(architecture)[name] for name in WAYS[way]}
    meta = expected["signed"].meta
    if way == "streamed":
        meta = replace(meta, model_id=str(shared / architecture), streamed=True)
    for rank in range(count):
        scores = load(shared, f"{architecture}-{way}-{count}", rank, WAYS[way])
        assert_same(scores, expected)
        # The fingerprint, too, is that of the whole weights.
        assert scores["signed"].meta == meta


def test_sharded_weights_are_refused_for_sums_over_single_examples(shared: Path) -> None:
    for rank in range(4):
        message = (shared / f"refused-{rank}.txt").read_text(encoding="utf-8")
        assert "gradients of single examples cannot be had from sharded weights" in message
        assert "allowed: signed, opposite or abs_of_mean" in message


def test_processes_with_different_free_memory_follow_one_plan(shared: Path) -> None:
    for rank in range(4):
        assert_same(load(shared, "uneven", rank), base("qwen3"))
        assert_same(
            load(shared, "uneven-sharded", rank, ("signed",)), {"signed": base("qwen3")["signed"]}
        )


def test_the_plan_is_that_of_the_least_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pair(Processes):
        def _reduce(self, tensor: torch.Tensor, operation: object) -> None:
            if tensor.is_floating_point():
                neighbour = torch.tensor([1e3, 0.0], dtype=tensor.dtype)
                tensor.copy_(torch.minimum(tensor, neighbour))

    model, encoded = tiny.build("qwen3"), tiny.examples(EXAMPLES)
    coverage = find_prunable(model)
    monkeypatch.setattr(choices, "free_memory", lambda _devices: Free(1e12, 0.0))
    roomy = planned(model, encoded, Pass(), coverage, 1)
    assert (roomy.layers_per_pass, roomy.checkpoint) == (None, False)
    careful = planned(model, encoded, Pass(), coverage, 1, Pair(0, 2))
    assert (careful.layers_per_pass, careful.checkpoint) == (1, True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Pair(0, 8).neighbours == 4
    assert Processes().neighbours == 1


def test_more_processes_than_examples(shared: Path) -> None:
    assert_same(load(shared, "few", 3), base("qwen3", FEW))
    wanda = load(shared, "wanda", 3, ("signed",))["signed"]
    expected = base("qwen3", FEW, "wanda")["signed"]
    for name, tensor in expected.tensors.items():
        assert torch.equal(wanda.tensors[name].index.sort()[0], tensor.index.sort()[0])
        torch.testing.assert_close(wanda.tensors[name].value, tensor.value, rtol=1e-5, atol=0)
