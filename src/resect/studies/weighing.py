"""Thresholds in words."""

from __future__ import annotations

import math

from resect.records import Interval
from resect.stats import Sample


def minus(first: Sample, second: Sample, name: str) -> Interval:
    """Return the paired difference of two samples as an interval."""
    return (first - second).interval(name)


def at_least(interval: Interval, bound: float) -> bool:
    """Return whether the lower bound reaches `bound`."""
    return interval.low is not None and interval.low >= bound


def at_most(interval: Interval, bound: float) -> bool:
    """Return whether the upper bound stays within `bound`."""
    return interval.high is not None and interval.high <= bound


def percent(value: float | None) -> str:
    """Return a fraction as a percentage for sentences."""
    return "unknown" if value is None or math.isnan(value) else f"{100 * value:.3g} %"
