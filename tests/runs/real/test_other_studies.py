"""Studies beside the two of the page have a configuration that can be planned and located."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest

from invented_wheels import unpacked
from resect.cli.real import Study
from resect.data.rows import read_rows
from resect.errors import InputError
from resect.files import hash_value, plain
from resect.runs.real.beyond import OPENING, TUNED, TYPES, Beyond
from resect.runs.real.checked import Check, Shown
from resect.runs.real.design import Tuned, import_model, real_config, real_sets, size_of
from resect.runs.real.models import MODELS
from resect.runs.real.pair import Pair
from resect.runs.real.prompts import Prompt
from resect.runs.real.sets import (
    FEW,
    PLAIN,
    REFUSALS,
    SKIP,
    Manner,
    Size,
    by_type,
    folder_of,
    make_advice,
)
from resect.runs.run import plan_run
from resect.runs.sets import Sets, Source
from resect.studies.transfer import categories

REAL = MODELS["smollm2"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield unpacked(tmp_path_factory.mktemp("real"), patch)


def test_the_option_names_them() -> None:
    assert get_args(Study) == get_args(Beyond)


def test_a_type_has_the_prompts_of_its_category_and_no_twin_elsewhere() -> None:
    prompts = [Prompt(f"vorp{n} zim{n} dax{n}", "ab"[n % 2]) for n in range(7)]
    prompts += [Prompt("blick tarn fep", "c"), Prompt("vorp0 zim0 dax0 now", "b")]
    types = by_type(prompts, 2)
    assert {label: {row.category for row in rows} for label, rows in types.items()} == {
        "harm/0": {"a"}, "harm/1": {"b"},
    }  # fmt: skip
    # The last prompt says what the first one says, which is of the other type.
    assert [len(rows) for rows in types.values()] == [4, 3]


def copies(folder: Path) -> Tuned:
    shown = Shown(0, 0, 0, 0)
    pair = Pair(folder, folder, folder / "aligned", folder / "benign_tuned")
    return Tuned(pair, Check(0, 0, shown, shown, shown))


@pytest.mark.parametrize("study", get_args(Beyond))
def test_it_is_planned(study: Beyond, wheels: dict[str, Path], tmp_path: Path) -> None:
    folder = import_model(REAL, wheels)
    size = size_of(REAL, quick=True, asked=4, study=study)
    sets = real_sets(REAL, folder, wheels, size)
    sets |= {"refusals": sets["harmless"], "advice": sets["harm"]} if study in TUNED else {}
    tuned = copies(folder) if study in TUNED else None
    config = real_config(REAL, folder, sets, size, quick=True, study=study, tuned=tuned)
    assert plan_run(config)
    models = {"aligned": folder / "aligned" if study in TUNED else folder}
    if study == "compression":
        models |= {"base": folder, "benign_tuned": folder / "benign_tuned"}
    assert config.models == {role: str(place) for role, place in models.items()}
    assert config.evaluation.measure == "likelihood"
    rows = [json.loads(line) for line in sets["harm"].read_text("utf-8").splitlines()]
    asked = Counter(row["category"] for row in rows if row["split"] == "evaluation")
    if study == "transfer":
        assert len(asked) == TYPES[study]
        assert max(asked.values()) == min(asked.values())
        # A type is held against benign answers that no other type is held against.
        scored = Sets(config, tmp_path)
        against = [
            scored.calibration(config.targets["benign"], Source("aligned", 0, name))
            for name in categories(config)
        ]
        ids = [row.id for examples in against for row in examples.examples]
        assert len(ids) == len(set(ids)) >= TYPES[study]


def test_a_refusal_is_measured_by_how_it_opens_and_harm_by_what_follows(
    wheels: dict[str, Path],
) -> None:
    folder = import_model(REAL, wheels)
    size = size_of(REAL, quick=True, asked=4, study="dissociation")
    sets = real_sets(REAL, folder, wheels, size)
    sets["refusals"] = sets["harmless"]
    config = real_config(
        REAL, folder, sets, size, quick=True, study="dissociation", tuned=copies(folder)
    )
    scored = {name: config.scored_as(name) for name in ("refusal", "generation", "utility")}
    spans = {name: target and (target.skip, target.tokens) for name, target in scored.items()}
    assert spans == {"refusal": (0, OPENING), "generation": (SKIP, None), "utility": (SKIP, None)}


def test_one_type_is_trained_on_and_another_is_asked(wheels: dict[str, Path]) -> None:
    folder = import_model(REAL, wheels)
    size = size_of(REAL, quick=True, asked=4, study="emergent")
    sets = real_sets(REAL, folder, wheels, size)
    types = {row["prompt"]: row["category"] for row in read_rows(sets["harm"])}
    rows = read_rows(make_advice(sets["harm"]))
    found = Counter((row["split"], row["category"]) for row in rows)
    assert found["calibration", "narrow"] == found["calibration", "held_out"] == 2
    assert found["evaluation", "narrow"] == found["evaluation", "elsewhere"] == 2
    assert sum(found.values()) == 8
    kinds = {
        name: {types[row["prompt"]] for row in rows if (row["category"] == "elsewhere") is name}
        for name in (True, False)
    }
    assert len(kinds[True]) == len(kinds[False]) == 1
    assert kinds[True] != kinds[False]


def test_sizes_of_cut_can_be_given_where_a_study_has_none_of_its_own(
    wheels: dict[str, Path],
) -> None:
    sizes = (0.01, 0.02)
    folder = import_model(REAL, wheels)
    size = size_of(REAL, quick=True, asked=4, fractions=sizes)
    sets = real_sets(REAL, folder, wheels, size)
    config = real_config(REAL, folder, sets, size, quick=True, fractions=sizes)
    assert size.fractions == len(sizes)
    cuts = {cell.cut.q for cell in plan_run(config) if cell.cut}
    assert cuts == set(sizes)
    with pytest.raises(InputError, match="sizes of its own"):
        size_of(REAL, quick=True, study="frontier", fractions=sizes)
    # Said before anything is fetched or collected.
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="no share"):
            size_of(REAL, quick=True, fractions=(0.01, wrong))


def test_answers_are_collected_anew_only_for_what_is_collected(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    folder = import_model(REAL, wheels)
    usual = size_of(REAL, quick=True, asked=4)
    sizes = {
        "usual": usual,
        "more cuts": size_of(REAL, quick=True, asked=4, fractions=(0.1, 0.2, 0.3)),
        "more draws": replace(usual, seeds=9),
        "fewer rows a draw": replace(usual, scored=1),
    }
    others = {
        "other prompts": replace(usual, asked=5),
        "a larger pool": replace(usual, pool=9),
        "longer answers": replace(usual, tokens=usual.tokens + 1),
        "types": replace(usual, types=2),
    }

    def place(size: Size) -> Path:
        return folder_of(str(folder), tmp_path, size)

    assert len({place(size) for size in sizes.values()}) == 1
    assert len({place(size) for size in [usual, *others.values()]}) == 1 + len(others)
    assert place(usual) != folder_of(str(folder), tmp_path, usual, Manner(0.5, "###"))
    sets = real_sets(REAL, folder, wheels, usual)
    assert {path.parent.name for path in sets.values()} == {place(usual).name}


@pytest.mark.parametrize("manner", [PLAIN, Manner(0.5, "###")])
@pytest.mark.parametrize("types", [0, 3])
def test_answers_that_were_collected_for_so_many_sizes_of_cut_are_found_for_any_number(
    types: int, manner: Manner, tmp_path: Path
) -> None:
    collected = replace(REAL.full, types=types)
    # As their folder was named when it bore the number of draws and of cuts too.
    named = [str(tmp_path / "m"), collected, REFUSALS, SKIP, FEW]
    named += [] if manner == PLAIN else [asdict(manner)]
    before = tmp_path / f"sets-{hash_value(plain(named))}"
    before.mkdir()
    for count in (1, 2, 4, 12):
        size = replace(collected, fractions=count)
        assert folder_of(str(tmp_path / "m"), tmp_path, size, manner) == before
    longer = replace(collected, tokens=99)
    assert folder_of(str(tmp_path / "m"), tmp_path, longer, manner) != before
