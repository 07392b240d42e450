"""What the numbers of a run count, by who scored them: one word for it in every table and figure.

Studies speak of harm. A judge that knows refusals alone does not measure that, nor does a
likelihood. So a report puts the noun of `resect.records.COUNTED` in the place of the word wherever
it stands for a number: in effects, conditions, rules, reasons, headings, axes and captions. Claims
stay as they were stated, and so do names in files; a line at each claim says what it rests on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from resect.errors import InputError
from resect.files.reading import read_text, read_yaml
from resect.records import COUNTED, Claim, Interval, Results, StudyResult
from resect.report.figures.spec import Drawing, Panel, Point

# The noun for a number, as a group; what goes before it is the target of a chosen cut, which may
# have this name too, and stays. So does a kind of harm in the data.
HARM = re.compile(
    r"(?:[:;] |\()harm, (?:q = |p = |\d+ rounds|over the )|(?<![\w-])([Hh]arm)(?![\w-]| types?\b)"
)
# The folders before a file in the name of a judge, with either kind of slash.
FOLDERS = re.compile(r"(?<=[:+,])[^:+,]*[/\\]")
WHOLE = "whole hits"
# Studies whose replies are all compared with keys, whatever the judge of the configuration.
BY_KEYS = {"emergent"}
# Tables of weights and of examples: no reply was scored for them.
OF_WEIGHTS = {"where", "overlap", "agreement", "changes", "scored"}
# The same of drawings, by the end of their names; and of those that are titled by claims.
DRAWN_WEIGHTS = tuple(f"-{table}" for table in OF_WEIGHTS)
TITLED_BY_CLAIMS = "-claims"


@dataclass(frozen=True)
class Measured:
    """Who scored the replies of a run.

    Attributes:
        judge: As in the configuration; empty for a likelihood, and where it is not known.
        kind: Key of `COUNTED`; empty where it is not known.
    """

    judge: str = ""
    kind: str = ""

    @property
    def behaviour(self) -> str:
        """What to call the behaviour under study."""
        return COUNTED[self.kind].behaviour if self.kind else "harm"

    @property
    def name(self) -> str:
        """The judge in a word or two, for a column."""
        if not self.kind:
            return "not recorded"
        return f"{self.judge} judge" if self.judge else "likelihood, no judge"

    @property
    def line(self) -> str:
        """What a number rests on, as a sentence; "" where it is not known."""
        if not self.kind:
            return ""
        by = f"the {self.judge} judge" if self.judge else "the likelihood of given answers"
        return f"Measured by {by}: {COUNTED[self.kind].sees}."

    def of_study(self, study: str) -> Measured:
        """Return who scored what a study reads."""
        return Measured("exact", "exact") if study in BY_KEYS and self.judge else self

    def say(self, text: str) -> str:
        """Return text in which the behaviour has the name of what was measured."""
        noun = self.behaviour
        if noun == "harm":
            return text
        text = text.replace("wholly harmful answers", WHOLE).replace("wholly harmful", WHOLE)
        words = {None: None, "harm": noun, "Harm": noun.capitalize()}
        return HARM.sub(lambda match: words[match[1]] or match[0], text)


UNKNOWN = Measured()


def measured_by(run: Path, provenance: Mapping[str, object]) -> Measured:
    """Return who scored the replies of a run, if need be from its configuration."""
    if provenance.get("measure") == "likelihood":
        return Measured("", "likelihood")
    judge, kind = provenance.get("judge"), provenance.get("judge_kind")
    if not isinstance(judge, str):
        judge, kind = _configured(run / "config.yaml"), ""
    named = (str(kind), judge.partition("@")[0], judge.partition(":")[0])
    known = next((name for name in named if name in COUNTED), "")
    return Measured(without_folders(judge), known) if known else UNKNOWN


def without_folders(judge: str) -> str:
    """Return a judge's name with its files by their last parts: reports are sent around."""
    return FOLDERS.sub("", judge) if judge.startswith(("fitted:", "keyword:")) else judge


def _configured(path: Path) -> str:
    """Return the judge of a configuration; "" if it names none, or cannot be read."""
    config: object = None
    with contextlib.suppress(InputError, OSError, UnicodeDecodeError):
        config = read_yaml(read_text(path), path)
    evaluation = config.get("evaluation") if isinstance(config, Mapping) else None
    judge = evaluation.get("judge") if isinstance(evaluation, Mapping) else None
    return judge if isinstance(judge, str) else ""


def worded(results: Results, measured: Measured) -> Results:
    """Return results in which every number is called what was measured; claims stay as stated."""
    return replace(
        results,
        claims=tuple(_claim(claim, measured) for claim in results.claims),
        studies=tuple(_study(study, measured) for study in results.studies),
    )


def _study(study: StudyResult, measured: Measured) -> StudyResult:
    claims = tuple(_claim(claim, measured) for claim in study.claims)
    return replace(study, claims=claims, shows=measured.of_study(study.study).say(study.shows))


def _claim(claim: Claim, measured: Measured) -> Claim:
    measured = measured.of_study(claim.study)
    say = measured.say

    def named(effect: Interval) -> Interval:
        return replace(effect, name=say(effect.name))

    recipe = claim.recipe
    return replace(
        claim,
        effect=named(claim.effect),
        controls=tuple(named(control) for control in claim.controls),
        rule=say(claim.rule),
        reason=say(claim.reason),
        requirements=tuple(
            replace(requirement, interval=named(requirement.interval))
            for requirement in claim.requirements
        ),
        recipe=recipe and replace(recipe, reason=say(recipe.reason), effect=named(recipe.effect)),
    )


def worded_drawing(drawing: Drawing, measured: Measured) -> Drawing:
    """Return a drawing in which every number is called what was measured.

    Names of arms, attacks and sets, on ticks and in the key, are the user's and stay.
    """
    if drawing.name.endswith(DRAWN_WEIGHTS):
        return drawing
    by = f" Scored by: {measured.name}." if measured.kind else ""
    caption = measured.say(drawing.caption) + by
    if drawing.name.endswith(TITLED_BY_CLAIMS):
        return replace(drawing, caption=caption)
    panels = tuple(_panel(panel, measured) for panel in drawing.panels)
    return replace(drawing, caption=caption, panels=panels)


def _panel(panel: Panel, measured: Measured) -> Panel:
    say = measured.say

    def titled(point: Point) -> Point:
        return replace(point, title=say(point.title))

    return replace(
        panel,
        title=say(panel.title),
        x=replace(panel.x, label=say(panel.x.label)),
        y=replace(panel.y, label=say(panel.y.label)),
        series=tuple(
            replace(line, points=tuple(titled(point) for point in line.points))
            for line in panel.series
        ),
    )
