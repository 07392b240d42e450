"""Several sets are a block each; sets, variants and evaluations are compared with an interval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from command_line import call, ok, write
from resect.errors import InputError
from resect.evaluation.differences import Arm, arms_of, differences
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.evaluation.sets import split_sets

PROBES = ("--probe", "generation", "--probe", "likelihood", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, two sets of which a mask spoils the one, and evaluations of both."""
    folder = tmp_path_factory.mktemp("sets")
    model = tiny.build("llama")
    tiny.save("llama", folder / "model")
    mask = tiny.cut(model, share=0.5)
    mask.save(folder / "m.mask.safetensors")
    sets = {}
    for name, prefix in (("insults", "i"), ("talk", "tt")):
        rows = tiny.rows(10, prefix)
        if name == "insults":
            tiny.answer_half(rows, model, mask)
        sets[name] = write(folder / f"{name}.jsonl", rows)
    shared = ["eval", folder / "model", "--mask", folder / "m.mask.safetensors", *PROBES]
    for name, path in sets.items():
        ok(*shared, "--data", path, "-o", folder / f"alone-{name}")
    ok(*shared, "--data", sets["insults"], "--data", sets["talk"], "--compare",
       "-o", folder / "both")  # fmt: skip
    return {"folder": folder, **sets}


def rates(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["rates"]


def test_each_set_is_what_it_is_alone(bench: dict[str, Path]) -> None:
    folder = bench["folder"]
    for name in ("insults", "talk"):
        assert rates(folder / "both" / name) == rates(folder / f"alone-{name}")
    assert rates(folder / "both" / "insults") != rates(folder / "both" / "talk")
    again = call("eval", "--rejudge", folder / "both", "-o", folder / "again")
    assert again.returncode == 2
    assert "both/insults" in again.stderr
    ok("eval", "--rejudge", folder / "both" / "talk", "--judge", "exact", "-o", folder / "again")
    assert [row["rate"] for row in rates(folder / "again")] == [
        row["rate"] for row in rates(folder / "alone-talk")
    ]


def test_a_block_for_each_set_is_printed_and_likelihood_has_no_judge(
    bench: dict[str, Path], tmp_path: Path
) -> None:
    words = ["eval", bench["folder"] / "model", *PROBES]
    both = ["--data", bench["insults"], "--data", bench["talk"]]
    done = ok("--json", *words, *both, "-o", tmp_path / "out")
    tables = {row["title"]: row["rows"] for row in map(json.loads, done.splitlines())
              if row["type"] == "table"}  # fmt: skip
    for name in ("insults", "talk"):
        (judged,) = tables[f"{name}: rates with 95 % intervals"]
        assert (judged["probe"], judged["judge"], judged["scored"]) == ("generation", "exact", 10)
        (measured,) = tables[f"{name}: likelihood of the texts as they stand, nats a token"]
        assert measured["probe"] == "likelihood"
        assert measured["texts"] == 10
        assert measured["nll"] > 0
        assert not {"judge", "unscored", "rate"} & set(measured)


def test_a_note_names_its_set(bench: dict[str, Path], tmp_path: Path) -> None:
    words = ["eval", bench["folder"] / "model", "--probe", "generation", "--max-new-tokens", "1"]
    both = ["--data", bench["insults"], "--data", bench["talk"]]
    done = call(*words, *both, "-o", tmp_path / "out")
    notes = [line for line in done.stderr.splitlines() if "were cut off by the limit" in line]
    assert [note.partition(": ")[0] for note in notes] == ["insults", "talk"]


def test_sets_are_paired_with_probes() -> None:
    def blocks(probes: tuple[str, ...], *data: str) -> dict[str, tuple[str, ...]]:
        requests = split_sets(EvalRequest("m", probes, data))
        return {name: request.data for name, request in requests.items()}

    two = ("generation", "utility")
    assert list(blocks(two, "a.jsonl")) == [""]
    assert list(blocks(two, "a.jsonl", "utility=u.jsonl")) == [""]
    assert blocks(two, "x/a.jsonl", "y/b.csv", "utility=u.jsonl") == {
        "a": ("generation=x/a.jsonl", "utility=u.jsonl"),
        "b": ("generation=y/b.csv",),
    }
    assert list(blocks(two, "x/a.jsonl", "y/a.jsonl")) == ["a", "a-2"]
    with pytest.raises(InputError, match="one set twice"):
        blocks(two, "a.jsonl", "a.jsonl")
    # Nothing takes the last of several in silence.
    with pytest.raises(InputError, match="several sets"):
        evaluate_model(EvalRequest("m", two, ("a.jsonl", "b.jsonl")), Path("nowhere"))


def arm(name: str, scores: Sequence[float | None], prompts: list[str], **more: Any) -> Arm:
    rows = [
        {"probe": "generation", "attack": "none", "judge": "exact", "score": score,
         "prompt": prompt, "example_id": str(number), "nll": None} | more
        for number, (score, prompt) in enumerate(zip(scores, prompts, strict=True))
    ]  # fmt: skip
    return Arm(name, rows, {})


def test_paired_differences_are_narrower_than_those_of_other_prompts() -> None:
    draw = np.random.default_rng(4)
    first = [float(score) for score in draw.integers(0, 2, size=60)]
    second = [*first[:54], *(1 - score for score in first[54:])]
    prompts = [f"p {number}" for number in range(60)]
    (paired,) = differences([arm("a", first, prompts), arm("b", second, prompts)])
    other = [f"q {number}" for number in range(60)]
    (apart,) = differences([arm("a", first, prompts), arm("b", second, other)])
    expected = float(np.mean(second) - np.mean(first))
    for row in (paired, apart):
        assert row["difference"] == pytest.approx(expected)
        assert row["low"] is not None
        assert row["high"] is not None
        assert row["low"] <= expected <= row["high"]
    assert (paired["paired"], apart["paired"]) == (True, False)
    # By hand: a difference of two means of independent prompts, ± 1.96 standard errors.
    error = 1.96 * np.sqrt((np.var(first) + np.var(second)) / 60)
    assert apart["high"] - apart["low"] == pytest.approx(2 * error, rel=0.15)  # type: ignore[operator]
    inside = 1.96 * np.std(np.subtract(second, first)) / np.sqrt(60)
    assert paired["high"] - paired["low"] == pytest.approx(2 * inside, rel=0.35)  # type: ignore[operator]


def test_unscored_replies_and_repeated_prompts_are_no_further_evidence() -> None:
    (row,) = differences(
        [
            arm("a", [1.0, 1.0, 0.0, None], ["p", "p", "q", "r"]),
            arm("b", [0.0, 0.0, 0.0, 1.0], ["p", "P ", "q", "r"]),
        ]
    )
    assert (row["prompts"], row["prompts_against"]) == (3, 2)
    assert row["value_against"] == pytest.approx(0.5)
    assert row["paired"]
    with pytest.raises(InputError, match="nothing to compare with"):
        differences([arm("a", [1.0], ["p"])])


def test_differences_of_sets_and_variants(bench: dict[str, Path]) -> None:
    folder = bench["folder"] / "both"
    stored = json.loads((folder / "differences.json").read_text(encoding="utf-8"))["differences"]
    assert {(row["arm"], row["against"]) for row in stored} == {
        *((arm, "insults, intact") for arm in ("insults, cut", "talk, intact", "talk, cut")),
        ("talk, cut", "talk, intact"),
    }
    # What the cut does to the second set is a difference of the same prompts.
    (own,) = (
        row for row in stored if row["against"] == "talk, intact" and row["probe"] == "likelihood"
    )
    of_talk = {
        row["variant"]: row for row in rates(folder / "talk") if row["probe"] == "likelihood"
    }
    assert own["paired"]
    assert own["difference"] == pytest.approx(of_talk["cut"]["nll"] - of_talk["intact"]["nll"])
    first = [row for row in stored if row["against"] == "insults, intact"]
    by = {(row["arm"], row["probe"]): row for row in first}
    rate = {(row["variant"], row["probe"]): row for row in rates(folder / "insults")}
    cut = by["insults, cut", "generation"]
    assert cut["difference"] == pytest.approx(
        rate["cut", "generation"]["rate"] - rate["intact", "generation"]["rate"]
    )
    assert cut["difference"] > 0
    assert cut["paired"]
    assert not by["talk, cut", "generation"]["paired"]
    loss = by["insults, cut", "likelihood"]
    assert (loss["unit"], loss["judge"]) == ("nats a token", "")
    assert loss["difference"] == pytest.approx(
        rate["cut", "likelihood"]["nll"] - rate["intact", "likelihood"]["nll"]
    )


def test_nothing_to_compare_is_said_before_anything_is_asked(
    bench: dict[str, Path], tmp_path: Path
) -> None:
    words = ["eval", bench["folder"] / "model", *PROBES, "--data", bench["talk"]]
    done = call(*words, "--compare", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "nothing to compare" in done.stderr
    assert not (tmp_path / "out").exists()


def test_judging_again_compares_variants(bench: dict[str, Path], tmp_path: Path) -> None:
    folder = bench["folder"]
    ok("eval", "--rejudge", folder / "alone-insults", "--compare", "-o", tmp_path / "again")
    assert (tmp_path / "again" / "differences.json").is_file()
    ok("eval", folder / "model", *PROBES, "--data", bench["talk"], "-o", tmp_path / "lone")
    done = call("eval", "--rejudge", tmp_path / "lone", "--compare", "-o", tmp_path / "none")
    assert done.returncode == 2
    assert "nothing to compare" in done.stderr
    assert not (tmp_path / "none").exists()


def test_reports_put_evaluations_side_by_side(bench: dict[str, Path], tmp_path: Path) -> None:
    folder = bench["folder"]
    one, two = folder / "alone-insults", folder / "alone-talk"
    ok("report", "--compare", one, two, "-o", tmp_path / "page")
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "page" / "report.json").read_text(encoding="utf-8"))
    assert content["differences"] == json.loads(json.dumps(differences(arms_of([one, two]))))
    assert "alone-talk, cut" in page
    assert "data" in content["settings"]
    assert (tmp_path / "page" / "tables" / "differences.csv").is_file()
    ok("report", "--compare", folder / "both", "-o", tmp_path / "sets")
    clash = call("report", "--compare", one, two, "-o", one)
    assert clash.returncode == 2
    mixed = call("report", "--compare", one, folder / "model", "-o", tmp_path / "mixed")
    assert mixed.returncode == 2
    assert "a checkpoint" in mixed.stderr
    assert not (tmp_path / "mixed").exists()
