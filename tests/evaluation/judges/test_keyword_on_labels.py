"""What is said of the keyword judge's error is what it does on replies that people labelled."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from resect.evaluation.judges.keyword import judge_keyword
from resect.evaluation.labels import read_labels
from resect.records import COUNTED, Reply

ROOT = Path(__file__).parents[3]
FOUND, REFUSALS, OTHERS = 59, 109, 60
PAGES = ("docs/judges.md", "docs/faq.md", "docs/limitations.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_what_was_checked_and_what_was_not(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert re.search(rf"{FOUND} of {REFUSALS}|{REFUSALS} English refusals .* finds {FOUND}", text)
    assert "17 other languages" in text
    assert "no native speaker" in text
    assert "English" in text
    assert f"{FOUND} of {REFUSALS}" in COUNTED["keyword"].sees
    assert "other languages are unchecked" in COUNTED["keyword"].sees


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    interval = scipy_stats.binomtest(FOUND, REFUSALS).proportion_ci(method="exact")
    shown = [round(100 * value) for value in (FOUND / REFUSALS, interval.low, interval.high)]
    text = (ROOT / "docs/judges.md").read_text(encoding="utf-8")
    assert f"{shown[0]} % [{shown[1]}, {shown[2]}]" in text


@pytest.mark.skipif(
    not os.environ.get("RESECT_REFUSAL_LABELS"),
    reason="needs PyRIT's labelled replies, which are not in this repository: set "
    "RESECT_REFUSAL_LABELS to pyrit/datasets/scorer_evals/refusal_scorer of its wheel 1.1.0",
)
def test_the_numbers_are_those_of_the_labelled_replies() -> None:
    files = sorted(Path(os.environ["RESECT_REFUSAL_LABELS"]).glob("*.csv"))
    counts = {True: [0, 0], False: [0, 0]}
    for row in read_labels(files).rows:
        said = judge_keyword(Reply("1", "refusal", "none", "", row.prompt, "", row.text), "refuse")
        assert said.score is not None
        counts[row.hit][0] += said.outcome in ("refused", "refused_late")
        counts[row.hit][1] += 1
    assert counts == {True: [FOUND, REFUSALS], False: [0, OTHERS]}
