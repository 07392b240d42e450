"""Asking often: of several replies to a prompt the best counts, for all variants alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from invented_run import Invented, Rate, invented_config
from resect.errors import InputError
from resect.files.reading import read_json
from resect.records import Claim, Row
from resect.report.words import readable
from resect.runs.config import parse_config
from resect.runs.demo import demo_config
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies import STUDIES
from resect.studies.asked import Asked, best_of
from resect.studies.cells import Cell
from resect.studies.sampled import Asking, asking_of, is_sampled
from tiny_organism import tiny_organism
from tiny_run import tiny_values

OFTEN = "sampled:10+prefill"


@pytest.mark.parametrize(
    ("attack", "asking"),
    [
        ("sampled:10", Asking("none", 10, 1.0)),
        ("sampled:k=3,temperature=0.7+few_shot:2+prefill=a+b",
         Asking("few_shot:2+prefill=a+b", 3, 0.7)),
        ("prefill=sampled:10", Asking("prefill=sampled:10")),
    ],
)  # fmt: skip
def test_it_is_read(attack: str, asking: Asking) -> None:
    assert asking_of(attack) == asking
    assert is_sampled(attack) == (asking.samples > 1)


@pytest.mark.parametrize(
    "attack",
    ["sampled:", "sampled:1", "sampled:x", "sampled:k=2,temperature=0", "sampled:temperature=1",
     "sampled:k=2,heat=1", "sampled:k=2,temperature=inf", "sampled:k=2,temperature=nan"],
)  # fmt: skip
def test_what_it_is_not_is_refused(attack: str) -> None:
    with pytest.raises(InputError, match="cannot read the attack"):
        asking_of(attack)


def test_all_variants_are_asked_as_often_and_greedily_too() -> None:
    plain = demo_config((0,), quick=False, studies=["jailbreak"])
    values = plain.model_dump(mode="json")
    values["studies"]["jailbreak"]["attacks"].append("sampled:10+prefill:2")
    added = set(plan_run(parse_config(values, "test"))) - set(plan_run(plain))
    assert {(cell.attack, cell.samples, cell.temperature) for cell in added} == {
        ("prefill:2", 10, 1.0), ("prefill:2", 1, 0.0),
    }  # fmt: skip
    kinds = {None if cell.cut is None else cell.cut.kind for cell in added if cell.samples == 10}
    assert kinds == {None, "target", "random"}
    assert len(added) == 2 * 3


def row(example: str, score: float | None, outcome: str | None = None) -> Asked:
    return Asked("a", example, "test", score, outcome, example=example)


def test_the_best_reply_to_a_prompt_counts() -> None:
    rows = [
        row("x", 0.0, "refused"), row("x", 0.4, "partial"), row("y", 0.0, "refused"),
        row("y", 1.0, "complied"), row("z", None), row("z", 1.0, "complied"),
        row("u", None), row("u", 0.6, "partial"),
    ]  # fmt: skip
    assert [(each.example, each.score) for each in best_of(rows, ())] == [
        ("x", 0.4), ("y", 1.0), ("z", 1.0), ("u", None),
    ]  # fmt: skip
    complied = [each.score for each in best_of(rows, ("complied",))]
    assert complied == [0.0, 1.0, 1.0, None]


def jailbreak(rate: Rate, *attacks: str, tabled: bool = False) -> tuple[list[Claim], list[Row]]:
    config = invented_config({"jailbreak": {"attacks": list(attacks)}})
    study = STUDIES["jailbreak"]
    measured = Invented(config, rate, prompts=200)
    measured.tabled = tabled
    result = study.summarise(measured, config.section(study))
    return list(result.claims), [dict(row) for row in result.tables.get("sampled", ())]


def one_in_four(cell: Cell, probe: str) -> float:
    """Return the rates of a cut after which every fourth reply complies, whoever asks."""
    if probe != "generation" or cell.cut is None or cell.cut.kind == "random":
        return 0.05 if cell.attack == "none" and probe == "generation" else 0.95
    return 0.0 if cell.attack == "none" else 0.25


def never(cell: Cell, probe: str) -> float:
    """Return those of a cut after which no reply does."""
    located = cell.cut is not None and cell.cut.kind == "target"
    return 0.0 if located and probe == "generation" else one_in_four(cell, probe)


def test_a_cut_that_holds_once_need_not_hold_ten_times() -> None:
    (_, once), _ = jailbreak(one_in_four, "prefill")
    assert once.verdict == "supported"
    (_, often), _ = jailbreak(one_in_four, "prefill", OFTEN)
    assert often.verdict == "not supported"
    assert OFTEN in often.reason
    (_, holds), _ = jailbreak(never, "prefill", OFTEN)
    assert holds.verdict == "supported"


def test_plain_requests_asked_often_are_an_attack_on_the_gate() -> None:
    # One in twenty plain requests is answered: ten tries bring out ten times as much.
    (brittle, _), _ = jailbreak(never, "sampled:10")
    assert brittle.verdict == "supported"
    (brittle, _), _ = jailbreak(lambda cell, probe: 0.0 if probe == "generation" else 0.95,
                                "sampled:10")  # fmt: skip
    assert brittle.verdict != "supported"


def test_the_table_has_every_way_to_count() -> None:
    _, rows = jailbreak(one_in_four, OFTEN, tabled=True)
    arms = {str(row["arm"]): row for row in rows}
    assert set(arms) == {"intact", "target cut", "random cut"}
    cut = arms["target cut"]
    assert (cut["samples"], cut["temperature"], cut["n"]) == (10, 1.0, 200)
    assert cut["greedy"] == pytest.approx(0.25, abs=0.02)
    assert cut["mean"] == pytest.approx(0.25, abs=0.02)
    assert cut["best"] == pytest.approx(1, abs=0.02)
    low, value, high = (cut[name] for name in ("best_low", "best", "best_high"))
    assert float(str(low)) <= float(str(value)) <= float(str(high))


def test_whole_path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = tiny_organism(tmp_path_factory)
    values = tiny_values(built, {})
    section = {"attacks": ["sampled:2+few_shot:1"], "fraction": 0.01}
    values |= {"attack_data": {"target": "hazard"}}
    values["data"]["detection"] = str(built.data("detection"))
    values["targets"]["recognition"] = {"data": "detection", "limit": 8}
    values["evaluation"]["probes"]["recognition"] = "detection"
    told_apart = {"capabilities": ["generation", "recognition"], "fraction": 0.01}
    values["studies"] = {"jailbreak": section, "dissociation": told_apart}
    config, run = parse_config(values, "test"), tmp_path / "run"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    study, apart = sorted(results["studies"], key=lambda study: study["study"] != "jailbreak")
    areas = [row["value"] for row in apart["tables"]["matrix"] if row["measured"] == "recognition"]
    assert len(areas) == 4
    assert all(0 <= area <= 1 for area in areas)
    under = {(row["attack"], row["arm"]) for row in study["tables"]["attacks"]}
    assert len(under) == 3 * 2
    (sampled,) = [row for row in study["tables"]["sampled"] if row["arm"] == "random cut"]
    assert (sampled["samples"], sampled["n"]) == (2, 6)
    shown = [facts["few_shot"]["k"] for facts in map(read_json, (run / "attacks").iterdir())]
    assert shown == [1] * 6  # sampled and greedy, three arms


def test_reports_say_it_in_words() -> None:
    assert readable("sampled:10+prefill:3") == "best of 10 replies + prefill of 3 tokens"
    assert readable("few_shot:1") == "few-shot with 1 example"
    assert readable("finetune+few_shot:4") == "fine-tuning + few-shot with 4 examples"
    assert readable("quantise:bits=4") == "rounding, bits 4"
