"""What every page of resect shares: style, script, and a policy that lets nothing else in.

A page loads nothing. Its content security policy names the hashes of its one style and its one
script (which sorts tables), so text from data could not run even if it got past Jinja's escapes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2

from resect.report import words
from resect.report.figures.screen import bare, key_html, panel_svg, shapes_svg
from resect.report.figures.spec import COLOURS, Drawing


def hash_source(text: str) -> str:
    """Return what a policy calls an inline style or script: its SHA-256 in base 64."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@cache
def _style() -> str:
    text = resources.files("resect.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        "".join(f"--c{slot}:{colour[paper]};" for slot, colour in enumerate(COLOURS))
        for paper in (0, 1)
    )
    classes = "".join(f".c{slot}{{color:var(--c{slot})}}" for slot in range(len(COLOURS)))
    return text.replace("LIGHT", light).replace("DARK", dark).replace("CLASSES", classes)


@cache
def _script() -> str:
    return resources.files("resect.report").joinpath("sort.js").read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resect.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "visible": words.visible,
        "interval": words.interval,
        "cell": words.cell,
        "short": words.short,
        "readable": words.readable,
        "glued": words.glued,
        "sentence": words.sentence,
        "counted": words.counted,
        "weighed": words.weighed,
        "threshold": words.threshold,
        "models_of": words.models_of,
        "outcome": words.outcome,
    }
    environment.filters |= filters
    environment.globals |= {
        "signs": words.SIGNS,
        "states": words.STATES,
        "state_words": words.STATE_WORDS,
    }
    return environment


def render(template: str, **values: object) -> str:
    """Return a page."""
    style, script = _style(), _script()
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            shapes=shapes_svg(),
            style=style,
            script=script,
            style_hash=hash_source(style),
            script_hash=hash_source(script),
        )
    )


@dataclass(frozen=True)
class Figure:
    """A drawing as a page shows it.

    Attributes:
        name: Of the drawing.
        caption: What it says, in words.
        panels: Its panels, as SVG.
        key: Its key, as HTML.
        count: Number of panels.
        files: Paths of the same drawing as files, relative to the page.
    """

    name: str
    caption: str
    panels: str
    key: str
    count: int
    files: tuple[str, ...]


def figure_of(drawing: Drawing, *, files: bool) -> Figure:
    """Return a drawing for the page; with links to its files, if there are some."""
    return Figure(
        name=drawing.name,
        caption=drawing.caption,
        panels=bare("".join(panel_svg(panel) for panel in drawing.panels)),
        key=key_html(drawing),
        count=len(drawing.panels),
        files=tuple(f"figures/{drawing.name}.{kind}" for kind in ("svg", "pdf")) if files else (),
    )
