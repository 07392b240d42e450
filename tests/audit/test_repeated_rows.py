"""Rows of one prompt are no further evidence for an audit either."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
from scipy import stats as scipy_stats

from resect.audit.effects import _paired

PROMPTS = [f"question {number}" for number in range(8)]
BEFORE = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
AFTER = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["plain", "target loss"])
def test_forty_copies_of_eight_rows_say_as_much_as_eight(name: str) -> None:
    # Some more digits, so that losses have a spread.
    shift = 0.25 if name.endswith("loss") else 0.0
    before, after = (
        [score + shift * n for n, score in enumerate(side)] for side in (BEFORE, AFTER)
    )
    once = _paired(name, before, after, PROMPTS)
    # In other spelling a prompt is the same.
    spelt = [*PROMPTS, *(f" {prompt.upper()} " for prompt in PROMPTS)] * 20
    often = _paired(name, before * 40, after * 40, spelt)
    assert (once.n, often.n) == (8, 320)
    assert once.prompts == often.prompts == 8
    assert often.rise.value == pytest.approx(once.rise.value)
    assert often.rise.low == pytest.approx(once.rise.low)
    assert often.rise.high == pytest.approx(once.rise.high)
    told_apart = _paired(name, before * 40, after * 40, [str(n) for n in range(320)])
    assert (told_apart.rise.low or 0) > (once.rise.low or 0) + 0.1


@pytest.mark.parametrize("count", [3, 8])
def test_a_rise_of_few_losses_is_as_uncertain_as_student_says(count: int) -> None:
    before = [2.0 + 0.3 * n for n in range(count)]
    rises = [0.1, 0.4, 0.2, 0.5, 0.3, 0.2, 0.6, 0.1][:count]
    after = [loss + rise for loss, rise in zip(before, rises, strict=True)]
    paired = _paired("target loss", before, after, PROMPTS[:count])
    reach = scipy_stats.t.isf(0.025, count - 1) * stdev(rises) / math.sqrt(count)
    assert paired.rise.low == pytest.approx(fmean(rises) - reach, abs=0.2 * reach)
    assert paired.rise.high == pytest.approx(fmean(rises) + reach, abs=0.2 * reach)
