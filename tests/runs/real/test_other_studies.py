"""Studies beside the two of the page have a configuration that can be planned and located."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from invented_wheels import unpacked
from resect.cli.real import Study
from resect.runs.real.beyond import TYPES, Beyond
from resect.runs.real.design import import_model, real_config, real_sets, size_of
from resect.runs.real.models import MODELS
from resect.runs.real.prompts import Prompt
from resect.runs.real.sets import by_type
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


@pytest.mark.parametrize("study", get_args(Beyond))
def test_it_is_planned(study: Beyond, wheels: dict[str, Path], tmp_path: Path) -> None:
    folder = import_model(REAL, wheels)
    size = size_of(REAL, quick=True, asked=4, study=study)
    sets = real_sets(REAL, folder, wheels, size)
    config = real_config(REAL, folder, sets, size, quick=True, study=study)
    assert plan_run(config)
    assert config.evaluation.measure == "likelihood"
    rows = [json.loads(line) for line in sets["harm"].read_text("utf-8").splitlines()]
    asked = Counter(row["category"] for row in rows if row["split"] == "evaluation")
    if study == "transfer":
        assert len(asked) == TYPES
        assert max(asked.values()) == min(asked.values())
        # A type is held against benign answers that no other type is held against.
        scored = Sets(config, tmp_path)
        against = [
            scored.calibration(config.targets["benign"], Source("aligned", 0, name))
            for name in categories(config)
        ]
        ids = [row.id for examples in against for row in examples.examples]
        assert len(ids) == len(set(ids)) >= TYPES
