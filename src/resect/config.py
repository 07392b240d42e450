"""The configuration of a run: YAML in, checked models out, all errors at once.

What is written here before the run decides the verdicts after it: grids, budgets and thresholds
are part of the configuration and are printed in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from resect.errors import InputError
from resect.records import Format
from resect.rules import Section, Share, Studies

# Kind, and an option after a colon; judges check their options themselves when a run begins.
JUDGE = r"^(exact|keyword|strongreject|llm)(:.+)?$"


# More values than this are no configuration that a person wrote.
MOST_NODES = 100_000


class Target(Section):
    """A behaviour whose weights are sought.

    Attributes:
        data: Name of a set under `data`; its calibration split is scored.
        skip: Response tokens that are not scored, from the first.
        tokens: Most response tokens that are scored after those; None for all.
        contrast: Name of a target whose score is subtracted, for instance harmless answers in the
            same style to the same prompts.
        limit: Most examples to score; None for all.
    """

    data: str
    skip: Annotated[int, Field(ge=0)] = 0
    tokens: Annotated[int, Field(ge=1)] | None = None
    contrast: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class Preserve(Target):
    """The behaviour that is protected by the set difference."""

    reduction: Literal["mean_of_abs", "abs_of_mean"] = "mean_of_abs"


class Selection(Section):
    """How masks are chosen from scores.

    Attributes:
        p: Fraction protected by the preserve set; 0 protects nothing.
        scope: Rank within each weight tensor or over the whole model.
    """

    p: Share = 0.01
    scope: Literal["tensor", "model"] = "tensor"


class Attack(Section):
    """The attack under which generation is measured."""

    name: Literal["none", "prefill"] = "prefill"
    tokens: Annotated[int, Field(ge=1)] = 10
    phrase: str | None = None


class Evaluation(Section):
    """How variants are asked.

    Attributes:
        probes: Probe name to the name of a set under `data`; its evaluation split is asked.
        limit: Most prompts a probe; None for all.
        judge: As `resect eval --judge` takes it: `exact`, `keyword`, `strongreject`,
            `llm:RUBRIC@MODEL`.
        max_new_tokens: Tokens after which a reply is cut off.
        batch_size: Prompts decoded together.
    """

    probes: dict[str, str]
    limit: Annotated[int, Field(ge=1)] | None = None
    judge: Annotated[str, Field(pattern=JUDGE)] = "exact"
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 16


class RunConfig(Section):
    """A whole run.

    Attributes:
        name: For the report's heading.
        quick: Whether this is a shortened run; the report says so.
        seeds: Each seed is a model (where a place contains `{seed}`), a draw of the calibration
            examples and a draw of the random controls.
        models: Role to folder or Hub id.
        subject: The role that is cut in most studies.
        data: Name to SPEC; `{seed}` is replaced as in `models`.
        format: `raw` or `chat`.
        target: The behaviour that is sought, under `targets`.
        targets: Behaviours by name.
        preserve: The behaviour that is protected.
        selection: How masks are chosen.
        attack: The attack under which generation is measured.
        attack_data: What model attacks need: `target`, `refusal`, `preserve` to names under `data`.
        evaluation: How variants are asked.
        least_rate: A behaviour that the intact model shows less often is not measurable.
        most_unscored: Nor is one of which the judge could not score a larger share.
        most_dissent: No claim is supported if a larger share of the seeds says, each by itself,
            that it is not.
        studies: Which studies run, with their grids and rules.
    """

    name: str
    quick: bool = False
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    models: dict[str, str]
    subject: str = "aligned"
    data: dict[str, str]
    format: Format = "chat"
    target: str = "generation"
    targets: dict[str, Target]
    preserve: Preserve
    selection: Selection = Selection()
    attack: Attack = Attack()
    attack_data: dict[Literal["target", "refusal", "preserve"], str] = Field(default_factory=dict)
    evaluation: Evaluation
    least_rate: Share = 0.2
    most_unscored: Share = 0.2
    most_dissent: Annotated[float, Field(ge=0, le=1)] = 0.0
    studies: Studies

    @model_validator(mode="after")
    def _names_exist(self) -> RunConfig:
        problems = [
            *_missing("subject", [self.subject], self.models, "models"),
            *_missing("target", [self.target], self.targets, "targets"),
            *_missing("attack_data", list(self.attack_data.values()), self.data, "data"),
            *_missing("preserve.data", [self.preserve.data], self.data, "data"),
            *_missing(
                "evaluation.probes", list(self.evaluation.probes.values()), self.data, "data"
            ),
        ]
        for name, target in self.targets.items():
            problems += _missing(f"targets.{name}.data", [target.data], self.data, "data")
        for name, target in self.targets.items():
            if target.contrast is not None:
                where = f"targets.{name}.contrast"
                problems += _missing(where, [target.contrast], self.targets, "targets")
        problems += self._studies_problems()
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: a seed stands twice")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _studies_problems(self) -> list[str]:
        """Return what the studies name and the other sections lack."""
        problems: list[str] = []

        def need(study: str, section: str, names: Iterable[str | None]) -> None:
            wanted = [name for name in names if name]
            known = self.evaluation.probes if section == "probes" else getattr(self, section)
            problems.extend(_missing(f"studies.{study}", wanted, known, section))

        studies = self.studies
        if studies.compactness is not None:
            need("compactness", "targets", studies.compactness.rivals)
        if (one := studies.compression) is not None:
            need("compression", "models", (one.aligned, one.base, one.control, *one.others))
            need("compression", "models", (role for pair in one.pairs for role in pair))
            need("compression", "targets", [one.second.target] if one.second else [])
        if (two := studies.specificity) is not None:
            need("specificity", "targets", (*two.benign, *two.matched))
        if (three := studies.dissociation) is not None:
            need("dissociation", "targets", three.capabilities)
            need("dissociation", "probes", three.capabilities)
        if (four := studies.emergent) is not None:
            need("emergent", "targets", [four.target])
            need("emergent", "data", [four.data])
            need("emergent", "models", four.scored_on)
            need("emergent", "probes", ["misalignment"])
        if (five := studies.relearning) is not None:
            need("relearning", "data", (five.data, five.benign))
        if (six := studies.stability) is not None:
            need("stability", "targets", six.paraphrases)
            need("stability", "models", (*six.roles, *six.models))
        if (seven := studies.frontier) is not None:
            need("frontier", "targets", [method.target for method in seven.methods])
        return problems


def _missing(where: str, names: list[str], known: Mapping[str, Any], section: str) -> list[str]:
    return [
        f"{where}: {name!r} is not under {section} ({', '.join(known) or 'which is empty'})"
        for name in names
        if name not in known
    ]


def parse_config(values: Any, source: str) -> RunConfig:
    """Check a configuration.

    Raises:
        InputError: Lists every problem with its place in the file.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'whole file'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise InputError(
            f"{source} has {len(lines)} problem(s)",
            got="\n    ".join(lines),
            fix="mend the file; `resect study init` writes a commented example",
        ) from error


def load_config(path: str | Path) -> RunConfig:
    """Read a YAML configuration.

    Raises:
        InputError: The file is missing, is not YAML or does not fit; all problems at once.
    """
    return parse_config(read_values(path), str(path))


def read_values(path: str | Path) -> Any:
    """Read a YAML file without checking what it says.

    Raises:
        InputError: The file is missing or is not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        _refuse_alias_bomb(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path} is not valid YAML", got=str(error)) from error


def _refuse_alias_bomb(root: yaml.Node | None, path: str | Path) -> None:
    """Refuse a file whose aliases stand for more than `MOST_NODES` values or for themselves.

    A value that is named n times is counted n times, since checking and printing visit it as often.
    """
    todo = [] if root is None else [root]
    count = 0
    while todo:
        node = todo.pop()
        count += 1
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]
        if count + len(todo) > MOST_NODES:
            raise InputError(
                f"{path} is too large for a configuration, each alias counted as what it names",
                allowed=f"{MOST_NODES:,} values",
                fix="write the values out and leave out anchors and aliases",
            )


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that runs again as it is."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
