"""What a study is: one question, with its section of the configuration, its rules and its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from resect.records import Measure, StudyResult
from resect.studies.cells import Cell
from resect.studies.design import Design, Section
from resect.studies.halving import Searched
from resect.studies.measurements import Measurements
from resect.studies.weighing import percent

SectionType = TypeVar("SectionType", bound=Section)


class Stated(NamedTuple):
    """A claim in words and the rule that decides on it.

    Attributes:
        claim: The claim, or the words that it begins with where a run adds a name.
        rule: The rule; thresholds of the section stand in braces, `{harm_drop}` for instance, and
            are written as percentages unless a format is given.
    """

    claim: str
    rule: str


@dataclass(frozen=True)
class TemplateLines:
    """What a study adds to the configuration that `resect study init` prints.

    Lines go to the sections of their names, without indent.

    Attributes:
        models: More roles.
        harm: What the set of harmful answers must be.
        data: More sets.
        targets: More targets.
        target: Which of the targets is the behaviour under study.
        attack_data: What model attacks are made with.
        probes: More probes.
        values: Values of the study's section that differ from its defaults: the grids of a large
            model, which lives at a hundredth of the organism's fractions, and names.
    """

    models: tuple[str, ...] = ()
    harm: str = "prompts and the model's own answers: resect data collect"
    data: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    target: str = "generation"
    attack_data: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Study(Generic[SectionType]):
    """One question: what must be measured, and what the measurements say.

    Attributes:
        name: Name in configurations and on the command line.
        question: For headings.
        section: The study's part of the configuration, with its grid and its thresholds.
        stated: Its claims with their rules.
        plan: Configuration to cells; pure.
        summarise: Measurements to a result; reads records, never models.
        template: What `resect study init` prints beside the section.
        measure: The only `evaluation.measure` that it can be run with; None for either.
        searched: The choices that it makes from grids, where `evaluation.search` may leave out the
            rest of them; None where it reads everything that it plans.
    """

    name: str
    question: str
    section: type[SectionType]
    stated: tuple[Stated, ...]
    plan: Callable[[Design, SectionType], list[Cell]]
    summarise: Callable[[Measurements, SectionType], StudyResult]
    template: TemplateLines = TemplateLines()
    measure: Measure | None = None
    searched: Callable[[Design, SectionType], list[Searched]] | None = None

    def rules(self, section: SectionType | None = None) -> list[Stated]:
        """Return the claims with the thresholds of a section filled in; None for the defaults."""
        values = dict(section) if section else self._defaults()
        thresholds = {key: _Percent(v) for key, v in values.items() if isinstance(v, float)}
        return [Stated(claim, rule.format(**thresholds)) for claim, rule in self.stated]

    def _defaults(self) -> dict[str, object]:
        """Return the default values of the section, without building what checks its input."""
        return {
            name: field.get_default(call_default_factory=True)
            for name, field in self.section.model_fields.items()
        }


class _Percent(float):
    """A threshold that is written as a percentage unless a format is asked for."""

    def __format__(self, specification: str) -> str:
        return format(float(self), specification) if specification else percent(self)
