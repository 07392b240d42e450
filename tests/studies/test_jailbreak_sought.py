"""The jailbreak study under attacks that are made against each variant: suffixes, framed tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from invented_run import Invented, invented_config
from resect.errors import InputError
from resect.evaluation.attacks import parse_attack
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.report.words import readable
from resect.runs.config import parse_config
from resect.runs.demo import demo_config
from resect.runs.joint import why_alone
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies.cells import Cell, record_path
from resect.studies.jailbreak import STUDY, TRAINED, WITHSTANDS
from resect.studies.search import settings_of
from tiny_organism import tiny_organism
from tiny_run import tiny_values

SUFFIX = "gcg:steps=1,length=2,candidates=4,prompts=2,tokens=2"
TUNED = "jailbreak_tuning:rank=2,limit=4,steps=1"


def section_of(config: Any) -> Any:
    section = config.section(STUDY)
    assert section is not None
    return section


def summarised(*attacks: str) -> Any:
    config = invented_config({"jailbreak": {"attacks": list(attacks)}})
    run = Invented(config, lambda cell, probe: 0.9, prompts=60)
    run.tabled = False
    return STUDY.summarise(run, section_of(config))


def test_a_suffix_is_no_training_and_framed_tuning_is_one() -> None:
    result = summarised("gcg", "jailbreak_tuning")
    assert [claim.claim for claim in result.claims[1:]] == [WITHSTANDS.claim, TRAINED.claim]
    assert all("gcg" not in str(claim.rule) for claim in result.claims)


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        (["prefill:1"], "The attacks here are fixed and not adaptive"),
        (["prefill=+gcg=1"], "The attacks here are fixed and not adaptive"),
        (["finetune-search:steps=1|2"], "What was searched are the settings"),
        (["finetune+gcg+prefill:1"], "were sought against each variant, on a few prompts"),
        (["gcg-search:seed=0|1"], "were sought against each variant"),
        (["gcg", "finetune-search:steps=1|2"], "What was searched are the settings"),
    ],
)
def test_what_is_not_shown_depends_on_what_was_sought(attacks: list[str], said: str) -> None:
    text = summarised(*attacks).does_not_show
    assert said in text
    assert text.startswith("That no stronger attack exists. ")
    assert text.endswith("against this very cut.")
    assert ("were sought" in text) == any("gcg" in a and "=+gcg" not in a for a in attacks)


def test_keys_of_other_attacks_are_those_of_before() -> None:
    plain = demo_config((0,), quick=False, studies=["jailbreak"])
    values = plain.model_dump(mode="json")
    values["studies"]["jailbreak"]["attacks"] += [SUFFIX, TUNED]
    added = set(plan_run(parse_config(values, "test"))) - set(plan_run(plain))
    assert {cell.attack for cell in added} == {SUFFIX, TUNED}
    assert len(added) == 2 * 3  # intact, target cut, random cut
    assert {cell.probes for cell in added} == {("generation",)}


def test_options_are_searched_and_a_suffix_is_sought_alone() -> None:
    assert settings_of("gcg-search:length=5,seed=0|1+prefill:1") == [
        "gcg:length=5,seed=0+prefill:1", "gcg:length=5,seed=1+prefill:1",
    ]  # fmt: skip
    cell = Cell("aligned", 0, None, ("generation",), attack=SUFFIX)
    assert why_alone(cell, parse_attack(SUFFIX)) == "a suffix is sought against it"


def test_where_nothing_is_replied_they_are_refused() -> None:
    config = invented_config({"jailbreak": {"attacks": [SUFFIX, TUNED, "finetune"]}})
    likely = config.evaluation.model_copy(update={"measure": "likelihood"})
    config = config.model_copy(update={"evaluation": likely})
    with pytest.raises(InputError, match=r"changes no likelihood[\s\S]*gcg[\s\S]*jailbreak_tun"):
        STUDY.plan(config, section_of(config))


def test_reports_say_them_in_words() -> None:
    assert readable("gcg:steps=5,length=2+prefill:1") == (
        "sought suffix, steps 5, length 2 + prefill of 1 token"
    )
    assert readable("jailbreak_tuning") == "jailbreak tuning"


def test_whole_path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    values = tiny_values(tiny_organism(tmp_path_factory), {})
    values |= {
        "studies": {"jailbreak": {"attacks": [SUFFIX, TUNED], "fraction": 0.01}},
        "attack_data": {"target": "hazard"},
    }
    config, run = parse_config(values, "test"), tmp_path / "run"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    (study,) = results["studies"]
    rows = {(row["attack"], row["arm"]): row for row in study["tables"]["attacks"]}
    assert len(rows) == 3 * 3
    sought = [cell for cell in plan_run(config) if cell.attack == SUFFIX]
    notes = {cell: read_json(run / "attacks" / f"{cell.key}.json")["gcg"] for cell in sought}
    assert len(sought) == 3
    # Each variant has a suffix of its own; only a hash of its words is written.
    assert {tuple(note) for note in notes.values()} == {
        ("data", "dropped", "loss_after", "loss_before", "settings", "steps", "suffix")
    }
    assert len({note["loss_before"] for note in notes.values()}) == 3
    asked = read_parquet(record_path(run, sought[0]))
    questions = {row["prompt"] for row in asked if row["probe"] == "generation"}
    plain = Cell("aligned", 0, None, (), attack="none")
    assert questions == {row["prompt"] for row in read_parquet(record_path(run, plain))}
    # What was lost is sought again, and is the same.
    record_path(run, sought[0]).unlink()
    open_run(config, run, resume=True)
    measure_all(config, run, jobs=1)
    assert read_parquet(record_path(run, sought[0])) == asked
    assert read_json(run / "attacks" / f"{sought[0].key}.json")["gcg"] == notes[sought[0]]


def test_what_cannot_be_read_is_refused_before_anything_is_located(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = tiny_values(tiny_organism(tmp_path_factory), {})
    values["attack_data"] = {"target": "hazard"}
    for attack, said in (
        ("gcg:steps=0", "steps of gcg is out of range"),
        ("gcg:prompts=900", "too few examples for a suffix on 900 prompts"),
        ("jailbreak_tuning:benign=2", "benign of jailbreak_tuning is out of range"),
        ("jailbreak_tuning:benign=0.5", "an attack needs data for 'preserve'"),
        ("finetune:rank=0", "rank of the attack is out of range"),
    ):
        section = {"attacks": [attack], "fraction": 0.01}
        config = parse_config(values | {"studies": {"jailbreak": section}}, "test")
        run = tmp_path / attack.partition(":")[2]
        open_run(config, run, resume=False)
        with pytest.raises(InputError, match=said):
            measure_all(config, run, jobs=1)
        assert not list((run / "masks").glob("*"))
        assert not list((run / "records").glob("*"))
