"""Agreement of judges against textbook values and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from resect.evaluation.agreement import agreement_rows, kappa
from resect.records import Judgement


def verdicts(scores: list[float | None]) -> list[Judgement]:
    return [Judgement("j", "r", score) for score in scores]


def test_kappa_of_a_table() -> None:
    # 20 both yes, 5 first alone, 10 second alone, 15 both no: p_o = .7, p_e = .5, kappa = .4.
    ours = [True] * 25 + [False] * 25
    theirs = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    interval = kappa("k", ours, theirs)
    assert interval.value == pytest.approx(0.4)
    assert interval.low is not None
    assert interval.high is not None
    # The asymptotic interval is about .4 ± .25.
    assert 0.1 < interval.low < 0.25
    assert 0.55 < interval.high < 0.7


def test_kappa_equals_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for _ in range(5):
        ours, theirs = draw.random((2, 30)) < 0.4
        expected = metrics.cohen_kappa_score(ours, theirs)
        assert kappa("k", ours.tolist(), theirs.tolist()).value == pytest.approx(expected)


def test_kappa_is_unknown_where_judges_say_one_thing() -> None:
    assert kappa("k", [True] * 5, [True] * 5).value is None
    assert kappa("k", [], []).value is None
    assert kappa("k", [True] * 5, [False] * 5).value == 0


def test_unscored_replies_are_counted_apart() -> None:
    (row,) = agreement_rows({"a": verdicts([1, 0, None, 0.7]), "b": verdicts([1, 1, 0, 0.5])})
    assert (row["both_scored"], row["unscored"]) == (3, 1)
    assert row["agreement"] == pytest.approx(2 / 3)
    assert agreement_rows({"a": verdicts([1])}) == []
    assert len(agreement_rows(dict.fromkeys("abc", verdicts([1, 0])))) == 3
