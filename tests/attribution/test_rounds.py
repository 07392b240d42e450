"""Rounds and contrasts against slow twins; a stopped run goes on from its last round."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from resect.attribution.engine import attribute
from resect.attribution.passes import Progress
from resect.attribution.rounds import contrasted, locate
from resect.attribution.settings import Pass
from resect.cli import app
from resect.edit.live import removed
from resect.errors import InputError
from resect.model import prunable_tensors
from resect.records import CausalModel, Encoded, Scope
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import Scores
from resect.weights.select import select

TARGET = tiny.examples(5, seed=1)
OTHER = tiny.examples(4, seed=2)
DENSE = Pass(dense=True)


def protect(model: CausalModel) -> Scores:
    return attribute(
        model, tiny.tokenizer(), tiny.examples(4, seed=3), dense=True, reduction="mean_of_abs"
    )


def same(mask: Mask, expected: Mask) -> bool:
    return all(
        torch.equal(mine.index, expected.tensors[name].index)
        and torch.equal(mine.value, expected.tensors[name].value)
        and torch.equal(mine.round, expected.tensors[name].round)
        for name, mine in mask.tensors.items()
    ) and list(mask.tensors) == list(expected.tensors)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_one_round_is_attribute_and_select(architecture: str, p: float, scope: Scope) -> None:
    model = tiny.build(architecture)
    target = attribute(model, tiny.tokenizer(), TARGET)
    preserve = protect(model)
    expected = select(target, preserve, q=0.01, p=p, scope=scope)
    located = locate(model, tiny.tokenizer(), TARGET, preserve, q=0.01, p=p, scope=scope)
    assert same(located, expected)
    assert located.count > 0
    assert located.meta == {**expected.meta, "rounds": 1}


def slow(
    model: CausalModel, protected: dict[str, set[int]], *, q: float, rounds: int, scope: Scope
) -> dict[tuple[str, int], int]:
    """Return (tensor, flat index) -> round of what is cut, by plain loops over all weights."""
    weights = prunable_tensors(model)
    names = list(weights)
    aimed: dict[tuple[str, int], int] = {}
    for number in range(rounds):
        cut = {weight for weight in aimed if weight[1] not in protected.get(weight[0], set())}
        entries = {}
        for name in names:
            index = torch.tensor(sorted(i for n, i in cut if n == name), dtype=torch.int64)
            value = weights[name].reshape(-1)[index].clone()
            entries[name] = MaskTensor(
                tuple(weights[name].shape), index, value, torch.zeros(len(index), dtype=torch.uint8)
            )
        with removed(model, Mask(entries, {})):
            scores = attribute(model, tiny.tokenizer(), TARGET, DENSE)
        rows = [
            (-float(value), names.index(name), int(index), name)
            for name, tensor in scores.tensors.items()
            for index, value in zip(tensor.index, tensor.value, strict=True)
            if value > 0 and (name, int(index)) not in aimed
        ]
        rows.sort()
        groups = [rows] if scope == "model" else [[r for r in rows if r[3] == n] for n in names]
        sizes = [scores.total] if scope == "model" else [scores.tensors[n].size for n in names]
        owners = [set(names)] if scope == "model" else [{n} for n in names]
        for group, size, owner in zip(groups, sizes, owners, strict=True):
            until = math.floor(q * size) * (number + 1) // rounds
            taken = sum(name in owner for name, _ in aimed)
            for _, _, weight, name in group[: max(0, until - taken)]:
                aimed[name, weight] = number
    return {
        (name, index): number
        for (name, index), number in aimed.items()
        if index not in protected[name]
    }


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("rounds", [2, 3])
def test_rounds_match_plain_loops(rounds: int, scope: Scope) -> None:
    model, q, p = tiny.build("llama"), 0.03, 0.2
    before = {name: value.clone() for name, value in prunable_tensors(model).items()}
    preserve = protect(model)
    heads = preserve.heads(p, scope)
    protected = {
        name: set(tensor.index[:head].tolist())
        for (name, tensor), head in zip(preserve.tensors.items(), heads, strict=True)
    }
    mask = locate(model, tiny.tokenizer(), TARGET, preserve, q=q, p=p, scope=scope, rounds=rounds)
    cut = {
        (name, int(index)): int(number)
        for name, tensor in mask.tensors.items()
        for index, number in zip(tensor.index, tensor.round, strict=True)
    }
    assert cut == slow(model, protected, q=q, rounds=rounds, scope=scope)
    assert set(cut.values()) == set(range(rounds))
    assert cut.keys() != {
        (name, int(index))
        for name, tensor in locate(
            model, tiny.tokenizer(), TARGET, preserve, q=q, p=p, scope=scope
        ).tensors.items()
        for index in tensor.index
    }, "rounds changed nothing, so the test shows nothing"
    for name, tensor in mask.tensors.items():
        assert torch.equal(prunable_tensors(model)[name], before[name])
        assert torch.equal(tensor.value, before[name].reshape(-1)[tensor.index])
        assert len(set(tensor.index.tolist())) == tensor.index.numel()
        if scope == "tensor":
            assert tensor.index.numel() <= math.floor(q * tensor.size)
    assert mask.count <= q * mask.total


def test_a_contrast_is_the_difference_of_two_passes() -> None:
    model = tiny.build("llama")

    def dense(encoded: list[Encoded]) -> dict[str, torch.Tensor]:
        scores = attribute(model, tiny.tokenizer(), encoded, DENSE)
        return {n: t.value[t.index.argsort()] for n, t in scores.tensors.items()}

    contrasted_scores, target, style = dense(contrasted(TARGET, OTHER)), dense(TARGET), dense(OTHER)
    for name, value in contrasted_scores.items():
        # Sums of nine terms in fp32: rounding only.
        torch.testing.assert_close(value, target[name] - style[name], rtol=1e-4, atol=1e-6)
    plain = locate(model, tiny.tokenizer(), TARGET, None, q=0.02, p=0)
    apart = locate(model, tiny.tokenizer(), TARGET, None, contrast=OTHER, q=0.02, p=0)
    assert not same(plain, apart)
    assert apart.meta["contrast"]["examples"] == len(OTHER)


def test_a_stopped_run_goes_on_and_never_mixes_requests(tmp_path: Path) -> None:
    model = tiny.build("llama")
    whole = locate(model, tiny.tokenizer(), TARGET, None, q=0.03, p=0, rounds=3)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 2 * len(TARGET):
            raise KeyboardInterrupt

    def again(q: float = 0.03, report: Progress | None = None) -> Mask:
        return locate(
            model, tiny.tokenizer(), TARGET, None, q=q, p=0, rounds=3, on_progress=report,
            work=tmp_path, settings=Pass(batch_size=1),
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        again(report=stop)
    assert seen[-1] == (2 * len(TARGET) + 1, 3 * len(TARGET))
    passes: list[int] = []
    finished = again(report=lambda done, _total: passes.append(done))
    assert len(passes) == len(TARGET), "finished rounds were scored again"
    assert same(finished, again())
    assert same(finished, whole)
    assert not same(again(q=0.02), finished)
    with torch.no_grad():
        next(iter(prunable_tensors(model).values())).mul_(1.5)
    assert not same(again(), finished), "another model got the rounds of this one"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"q": 0.0, "p": 0.0}, "q is out of range"),
        ({"q": 0.1, "p": 2.0}, "p is out of range"),
        ({"q": 0.1, "p": 0.5}, "p reaches beyond"),
        ({"q": 0.1, "p": 0.0, "rounds": 0}, "number of rounds"),
        (
            {"q": 0.1, "p": 0, "contrast": OTHER, "settings": Pass(method="fisher")},
            "contrast needs signed scores",
        ),
    ],
)
def test_bad_requests(options: Any, words: str) -> None:
    model = tiny.build("llama")
    sparse = attribute(model, tiny.tokenizer(), OTHER, reduction="mean_of_abs")
    with pytest.raises(InputError, match=words):
        locate(model, tiny.tokenizer(), TARGET, sparse, **options)


def test_the_command_locates_on_a_folder_and_resumes(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    paths = {}
    for name in ("target", "preserve", "contrast"):
        paths[name] = tmp_path / f"{name}.jsonl"
        rows = "".join(json.dumps(row) + "\n" for row in tiny.rows(6, name))
        paths[name].write_text(rows, encoding="utf-8")
    output = tmp_path / "harm.mask.safetensors"
    words = ["locate", folder, "--q", "0.02", "--p", "0.05", "--rounds", "2", "--skip", "1"]
    for name, path in paths.items():
        words += [f"--{name}", path]
    straight = CliRunner().invoke(app, [*map(str, words), "-o", str(output)])
    assert straight.exit_code == 0, straight.output
    mask = Mask.load(output)
    assert mask.meta["rounds"] == 2
    assert mask.meta["target"]["skip"] == 1
    assert mask.meta["preserve"]["reduction"] == "mean_of_abs"
    assert 0 < mask.count <= 0.02 * mask.total
    stored = sorted((tmp_path / "harm.mask.safetensors.rounds").rglob("*.safetensors"))
    assert len(stored) == 3
    times = [path.stat().st_mtime_ns for path in stored]
    assert CliRunner().invoke(app, [*map(str, words), "-o", str(output)]).exit_code == 0
    assert [path.stat().st_mtime_ns for path in stored] == times
    assert same(Mask.load(output), mask)
