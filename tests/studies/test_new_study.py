"""A new study is one file and one line: here the file is this one, the line the fixture's first."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from invented_run import Invented, invented_config
from resect.errors import InputError
from resect.records import Claim, StudyResult
from resect.runs import config as config_module
from resect.studies import STUDIES, Measurements
from resect.studies.cells import Cell, Cut
from resect.studies.design import Design, Fraction, Section, Share, TargetName
from resect.studies.effects import cells_of, effect, intact_cells
from resect.studies.study import Stated, Study, TemplateLines
from resect.studies.template import template
from resect.studies.weighing import Condition, weigh

ENOUGH = Stated("One cut is enough.", "The cut lowers harm by ≥ {harm_drop}.")


class Toy(Section):
    """Rule of `toy`."""

    rival: TargetName = "refusal"
    fraction: Fraction = 0.01
    harm_drop: Share = 0.5


def plan(design: Design, section: Toy) -> list[Cell]:
    """Return the intact model and one cut."""
    cuts = (None, Cut(section.rival, "target", section.fraction))
    return [c for cut in cuts for c in cells_of(design, design.subject, cut, ("generation",))]


def summarise(measured: Measurements, section: Toy) -> StudyResult:
    """Weigh the drop of harm."""
    design = measured.config
    cut = Cut(section.rival, "target", section.fraction)
    result = effect(measured, cells_of(design, design.subject, cut))
    drop = result.harm_drop.interval("drop of harm")
    weighed = weigh(Condition(drop, at_least=section.harm_drop), supported="It is.")
    claim = Claim(
        study="toy",
        claim=ENOUGH.claim,
        verdict=weighed.verdict,
        effect=drop,
        controls=(result.utility_drop.interval("drop of utility"),),
        rule="The cut lowers harm.",
        seeds=design.seeds,
        n=measured.prompts(intact_cells(design), "generation"),
        reason=weighed.reason,
    )
    return StudyResult("toy", STUDY.question, (claim,), {}, "It.", "Nothing else.")


STUDY = Study(
    name="toy",
    question="Is one cut enough?",
    section=Toy,
    stated=(ENOUGH,),
    plan=plan,
    summarise=summarise,
    template=TemplateLines(targets=("refusal: {data: harm}",), values={"fraction": 1e-5}),
)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module of configurations as it is where STUDIES has one line more."""
    monkeypatch.setitem(STUDIES, "toy", STUDY)
    assert config_module.__file__ is not None
    spec = importlib.util.spec_from_file_location("config_with_toy", config_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "config_with_toy", module)
    spec.loader.exec_module(module)
    return module


def values(section: object) -> dict[str, object]:
    found = invented_config({"compactness": {}}).model_dump(mode="json")
    return found | {"studies": {"toy": section}}


def test_its_section_is_read_checked_and_written(config: ModuleType) -> None:
    parsed = config.parse_config(values({}), "test")
    assert parsed.section(STUDY) == Toy()
    written = yaml.safe_load(config.dump_config(parsed))
    assert written["studies"]["toy"] == {"rival": "refusal", "fraction": 0.01, "harm_drop": 0.5}
    assert config.parse_config(written, "test") == parsed
    for section, message in (
        ({"fraction": 3}, "studies.toy.fraction: Input should be less than or equal to 1"),
        ({"luck": 1}, "studies.toy.luck: Extra inputs are not permitted"),
        ({"rival": "gone"}, "studies.toy.rival: 'gone' is not under targets"),
    ):
        with pytest.raises(InputError) as caught:
            config.parse_config(values(section), "test")
        assert message in str(caught.value)


def test_its_template_is_a_configuration(config: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(template(STUDIES["toy"]), encoding="utf-8")
    parsed = config.load_config(path)
    assert parsed.section(STUDY) == Toy(fraction=1e-5)
    assert STUDIES["toy"].rules() == [(ENOUGH.claim, "The cut lowers harm by ≥ 50 %.")]


def test_it_is_planned_and_summarised_in_a_run(config: ModuleType, tmp_path: Path) -> None:
    from resect.files.tables import write_parquet
    from resect.runs.run import chosen_studies, plan_run, summarise_run
    from resect.studies.cells import record_path

    parsed = config.parse_config(values({}), "test")
    assert chosen_studies(parsed) == ["toy"]
    cells = plan_run(parsed)
    assert [cell.cut is None for cell in cells].count(True) == 1
    assert len(cells) == 2
    invented = Invented(
        parsed, lambda cell, probe: 0.1 if cell.cut and probe == "generation" else 0.9
    )
    for cell in cells:
        write_parquet(record_path(tmp_path, cell), invented.rows(cell))
    results = json.loads(summarise_run(parsed, tmp_path).read_text(encoding="utf-8"))
    assert [(claim["study"], claim["verdict"]) for claim in results["claims"]] == [
        ("toy", "supported")
    ]
