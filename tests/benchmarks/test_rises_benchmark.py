"""The simulation of rises computes what the tool computes, and sees the bounds of before fail."""

from __future__ import annotations

import numpy as np
import pytest

import mapped
from resect.stats import Resampler, difference

rises = mapped.script("rises")


@pytest.mark.parametrize(("strata", "rows"), [(1, 13), (3, 6)])
def test_its_bounds_are_those_of_a_study(strata: int, rows: int) -> None:
    draw, layout = np.random.default_rng(2), rises.Layout(strata, rows)
    harm, side = draw.exponential(1.0, (2, strata * rows, 3))
    drawn = rises.less(rises.mean_of("h", harm, layout), rises.mean_of("s", side, layout), 5.0)
    bounds = rises.METHODS["resect"](drawn)
    for place in range(3):
        ours = difference(
            *(
                Resampler(label).reaching(
                    {
                        f"0/{n}": list(factor * numbers[n * rows : (n + 1) * rows, place])
                        for n in range(strata)
                    }
                )
                for label, numbers, factor in (("h", harm, 1.0), ("s", side, 5.0))
            )
        ).interval("")
        assert bounds.low[place] == pytest.approx(ours.low)
        assert bounds.high[place] == pytest.approx(ours.high)


def test_lower_bounds_beside_a_wide_side_set_miss_seldom() -> None:
    found = rises.cell_of(rises.Cell("side × 3", "log-normal", rises.Layout(1, 26)), 1000)
    assert found["resect"].low <= 0.025
    assert found["before"].low > 0.03
    assert found["resect"].width < 1.3 * found["before"].width


def test_a_cell_is_a_line_of_the_table() -> None:
    cell = rises.Cell("margins", "log-normal", rises.Layout(1, 13))
    *_, line = rises.lines([cell], 40)
    assert line.startswith("| margins | log-normal | 1 × 13 |")
    *_, line = rises.lines([cell._replace(statistic="mean", shaped="gamma")], 40)
    assert line.count("×") == 1 + len(rises.METHODS) + 1
