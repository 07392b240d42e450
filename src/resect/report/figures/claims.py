"""The effect of every claim against its controls: the figure of a study that has none of its own.

It reads the claims alone, so that a new study has a figure from its first day.
"""

from __future__ import annotations

from collections.abc import Sequence

from resect.records import Claim
from resect.report.figures.parts import MOST_TITLE, drops, folded, names, number
from resect.report.figures.spec import Drawing, Panel, Point, Series, Style
from resect.report.words import bounds_sentence, effects_of, interval, is_fraction, readable


def draw(study: str, claims: Sequence[Claim]) -> list[Drawing]:
    """Return one panel a claim; effects that are no fractions are left to the tables."""
    panels = tuple(panel for claim in claims if (panel := _panel(claim)) is not None)
    bounds = bounds_sentence(effect for claim in claims for effect in effects_of(claim))
    caption = f"The effect of each claim beside its controls, with {bounds}."
    return [Drawing(f"{study}-claims", caption, panels)] if panels else []


def _panel(claim: Claim) -> Panel | None:
    listed = [
        effect for effect in effects_of(claim) if effect.value is not None and is_fraction(effect)
    ]
    if not listed:
        return None
    labels = [readable(effect.name) for effect in listed]
    points = [
        Point(number(effect.value), index, effect.low, effect.high,
              f"{effect.name}: {interval(effect)}")
        for index, effect in enumerate(listed)
    ]  # fmt: skip
    effects = 1 if listed[0] is claim.effect else 0
    series = tuple(
        Series(name, style, tuple(marks), False, "whisker", "x")
        for name, style, marks in (
            ("effect", Style(1, 0, "circle"), points[:effects]),
            ("controls", Style(2, 1, "up"), points[effects:]),
        )
        if marks
    )
    edges = [number(edge) for effect in listed for edge in (effect.value, effect.low, effect.high)]
    title = folded(readable(claim.claim), MOST_TITLE)
    height = 60 + 28 * len(labels) + 15 * title.count("\n")
    return Panel(title, drops("", edges, 1.0), names(labels), series=series, height=height)
