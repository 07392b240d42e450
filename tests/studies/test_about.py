"""Which masks a claim is about: those of its target's cuts, and no control's."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest

from invented_run import Invented, Rate, invented_config
from resect.records import Claim
from resect.studies import STUDIES, stability
from resect.studies.cells import Cell, Cut, mask_path, masks_of

GRID = {"fractions": [0.001, 0.002, 0.004]}


def claims(name: str, rate: Rate, section: dict[str, object], seeds: int = 1) -> list[Claim]:
    config = invented_config({name: section}, seeds=seeds)
    study, measured = STUDIES[name], Invented(config, rate, prompts=40)
    measured.tabled = False
    return list(study.summarise(measured, config.section(study)).claims)


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_study_shows_is_a_question_whatever_the_verdict(name: str) -> None:
    # The text stands beside claims that are not supported, too.
    source = inspect.getsource(importlib.import_module(f"resect.studies.{name}"))
    texts = [
        ast.unparse(word.value)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        for word in call.keywords
        if word.arg == "shows"
    ]
    assert texts
    for text in texts:
        assert re.match(r"[\"'(f]*(Whether|How|What) ", text), text


def name_of(cut: Cut, seed: int = 0, role: str = "aligned") -> str:
    return mask_path(Path(), role, seed, cut).name


def target(q: float, name: str = "generation") -> Cut:
    return Cut(name, "target", q)


def rate(cell: Cell, probe: str) -> float:
    """Return rates at which seed 0 is cut by the smallest fraction, and seed 1 by the largest."""
    if cell.cut is None or cell.cut.target != "generation" or cell.cut.kind != "target":
        return 0.9
    bites = cell.cut.q >= (0.001, 0.004)[cell.seed]
    return 0.1 if bites and probe == "generation" else 0.9


@pytest.mark.parametrize(
    ("study", "section"),
    [
        ("compactness", GRID),
        ("specificity", {**GRID, "benign": ["facts"], "matched": ["howto"]}),
        ("frontier", {**GRID, "protected": [0.02], "scopes": ["tensor"]}),
    ],
)
def test_a_claim_on_chosen_cuts_is_about_those_of_each_seed(
    study: str, section: dict[str, object]
) -> None:
    chosen = [target(0.001), target(0.004)]
    if study == "frontier":
        chosen = [replace(cut, p=0.02) for cut in chosen]
    expected = {name_of(cut, seed) for seed, cut in enumerate(chosen)}
    made = claims(study, rate, section, seeds=2)
    assert made
    for claim in made:
        assert set(claim.about) == expected, claim.claim


def test_claims_at_one_fraction_are_about_the_cut_of_it() -> None:
    usual = (name_of(target(0.001)),)
    # The first claim of jailbreak says something of the intact model.
    for study, about in (("relearning", [usual] * 3), ("jailbreak", [(), usual, usual])):
        made = claims(study, rate, {"fraction": 0.001})
        assert [claim.about for claim in made] == about


def test_two_draws_are_both_what_their_agreement_is_about() -> None:
    config = invented_config({"stability": {"fraction": 0.001, "draws": [0, 1]}})
    section = config.section(stability.STUDY)
    assert section is not None
    about = masks_of(stability._drawn(config, section))
    drawn = [Cut("generation", "target", 0.001, draw=draw, examples=64) for draw in (0, 1)]
    assert about == tuple(map(name_of, [target(0.001), *drawn]))


def test_each_way_of_a_dissociation_is_about_its_own_cut() -> None:
    generation, refusal, double = claims("dissociation", rate, {"fraction": 0.001})
    assert generation.about == (name_of(target(0.001)),)
    assert refusal.about == (name_of(target(0.001, "refusal")),)
    assert set(double.about) == {*generation.about, *refusal.about}
