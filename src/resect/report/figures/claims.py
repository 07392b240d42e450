"""The effect of every claim against its controls: the figure of a study that has none of its own.

It reads the claims alone, so that a new study has a figure from its first day.
"""

from __future__ import annotations

from typing import Any

from resect.report.figures.parts import MOST_TITLE, drops, folded, names, number
from resect.report.figures.spec import Drawing, Panel, Point, Series, Style
from resect.report.words import bounds_sentence, effects_of, interval, is_fraction, readable


def draw(study: str, claims: list[dict[str, Any]]) -> list[Drawing]:
    """Return one panel a claim; effects that are no fractions are left to the tables."""
    panels = tuple(panel for claim in claims if (panel := _panel(claim)) is not None)
    bounds = bounds_sentence(effect for claim in claims for effect in effects_of(claim))
    caption = f"The effect of each claim beside its controls, with {bounds}."
    return [Drawing(f"{study}-claims", caption, panels)] if panels else []


def _panel(claim: dict[str, Any]) -> Panel | None:
    listed = [
        one
        for one in (claim["effect"], *claim["controls"])
        if one["value"] is not None and is_fraction(one)
    ]
    if not listed:
        return None
    labels = [readable(one["name"]) for one in listed]
    points = [
        Point(one["value"], at, one["low"], one["high"], f"{one['name']}: {interval(one)}")
        for at, one in enumerate(listed)
    ]
    own = 1 if listed[0] is claim["effect"] else 0
    looks = (("effect", Style(1, 0, "circle"), points[:own]),
             ("controls", Style(2, 1, "up"), points[own:]))  # fmt: skip
    series = tuple(
        Series(name, look, tuple(found), False, "whisker", "x")
        for name, look, found in looks
        if found
    )
    edges = [number(one[key]) for one in listed for key in ("value", "low", "high")]
    title = folded(readable(claim["claim"]), MOST_TITLE)
    height = 60 + 28 * len(labels) + 15 * title.count("\n")
    return Panel(title, drops("", edges, 1.0), names(labels), series=series, height=height)
