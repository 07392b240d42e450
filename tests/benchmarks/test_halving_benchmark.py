"""The script that asks simulated runs twice, on one small run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import mapped
from resect.planted.verdicts.scenarios import scenarios_of
from resect.planted.verdicts.simulate import Size

PAGE = Path(__file__).parents[2] / "docs/design/halving.md"


def test_a_run_is_asked_twice_and_read_back(tmp_path: Path) -> None:
    halving = mapped.script("halving")
    world = replace(scenarios_of("compactness")[1], size=Size(models=1, prompts=40, tasks=60))
    once = partial(halving.outcome_of, world, 0)
    lines = tmp_path / "lines.jsonl"
    (outcome,) = halving.simulate([once], lines)
    amounts = outcome.amounts
    # 19 variants of 40 and 60 questions; the intact one and at least a choice are asked.
    assert amounts["both"][1] == 19 * 100
    assert 100 + 100 <= amounts["both"][0] < 19 * 100 / 3
    assert [sum(pair) for pair in zip(amounts["harm"], amounts["utility"], strict=True)] == amounts[
        "both"
    ]
    assert sum(outcome.cuts.values()) == 1
    assert [(v.study, v.stated) for v in outcome.verdicts] == [("compactness", 0)]
    written = lines.read_text(encoding="utf-8")
    assert halving.simulate([once], lines) == [outcome]
    assert lines.read_text(encoding="utf-8") == written
    results = {
        "amounts": [halving.amounts_of("compactness", [outcome])],
        "verdicts": halving.rows_of([outcome]),
    }
    table = halving.markdown(results, "made")
    assert f"{100 * amounts['both'][0] / 1900:.1f} %" in table


def test_the_page_has_its_table() -> None:
    halving = mapped.script("halving")
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(halving.BEGIN)
    table, end, _ = rest.partition(halving.END)
    assert end
    for name in halving.SEARCHED:
        assert f"| {name} |" in table
