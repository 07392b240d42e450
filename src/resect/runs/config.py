"""The configuration of a run: YAML in, checked models out, all errors at once.

What is written here before the run decides the verdicts after it: grids, budgets and thresholds
are part of the configuration and are printed in the report.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
)

from resect.data.task import is_task, parse_task
from resect.errors import InputError
from resect.files.reading import MOST_YAML, read_text, read_yaml
from resect.records import VerdictWord
from resect.studies import STUDIES
from resect.studies.design import Design, Names, Section
from resect.studies.study import SectionType, Study

# Lines that a message lists.
MOST_SHOWN = 100

# Studies that are written only where they run, so that configurations which were made before there
# were such studies keep text and hash.
LATER = ("selectivity",)


class _Studies(Section):
    """What all sections of studies have in common."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = write(self)
        return {
            name: value for name, value in values.items() if value is not None or name not in LATER
        }


if TYPE_CHECKING:

    class Studies(_Studies):
        """The studies of a run; a study that is left out does not run."""

        def __getattr__(self, name: str) -> Any:
            """Return the section of a study, None if it does not run."""

else:
    Studies = create_model(
        "Studies",
        __base__=_Studies,
        __module__=__name__,
        __doc__="The studies of a run; a study that is left out does not run.",
        **{name: (study.section | None, None) for name, study in STUDIES.items()},
    )


class RunConfig(Design):
    """A whole run.

    Attributes:
        studies: Which studies run, with their grids and rules.
        require: Claims that must have a verdict before a mask of the run is exported: a study, or
            `study: words of the claim`, and the verdict.
    """

    studies: Studies
    require: dict[str, VerdictWord] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = write(self)
        # Without requirements, text and hash are as they were before there were any.
        return {name: value for name, value in values.items() if value or name != "require"}

    def section(self, study: Study[SectionType]) -> SectionType | None:
        """Return the section of a study, None if it does not run."""
        section: SectionType | None = getattr(self.studies, study.name)
        return section


class _Reference(NamedTuple):
    """A text that names an entry of a mapping elsewhere in the configuration."""

    location: str
    name: str
    mapping: str


def name_problems(values: Mapping[str, object]) -> list[str]:
    """Return what a configuration names and does not define, one line each.

    It need not be a valid one: what is of the wrong kind is passed over, so that all that is wrong
    can be said at once.
    """
    problems = []
    for location, name, mapping in _references(RunConfig, values, ()):
        entries = _entries(values, mapping)
        if entries is not None and name not in entries:
            listed = ", ".join(map(str, entries)) or "which is empty"
            problems.append(f"{location}: {name!r} is not under {mapping} ({listed})")
    seeds = values.get("seeds")
    if isinstance(seeds, list | tuple):
        whole = [seed for seed in seeds if isinstance(seed, int)]
        if len(set(whole)) < len(whole):
            problems.append("seeds: a seed stands twice")
    return problems


def named(values: Mapping[str, object], mapping: str) -> set[str]:
    """Return which entries of a mapping (`models`) the rest of a configuration names."""
    references = _references(RunConfig, values, ())
    return {reference.name for reference in references if reference.mapping == mapping}


def _measure_problems(config: RunConfig) -> list[str]:
    """Return which studies cannot be run with the measure of a configuration, one line each."""
    measure = config.evaluation.measure
    chosen = [STUDIES[name] for name, section in config.studies if section is not None]
    return [
        f"studies.{study.name}: it needs `measure: {study.measure}` under evaluation, not {measure}"
        for study in chosen
        if study.measure not in (None, measure)
    ]


def _task_problems(config: RunConfig) -> list[str]:
    """Return what is wrong with the lm-eval tasks of a configuration, one line each."""
    tasks = {name: spec for name, spec in config.data.items() if is_task(spec)}
    problems = [
        f"{reference.location}: {reference.name!r} is an lm-eval task, which stands under "
        "evaluation.probes as utility and nowhere else"
        for reference in _references(RunConfig, config.model_dump(), ())
        if reference.mapping == "data"
        and reference.name in tasks
        and reference.location != "evaluation.probes.utility"
    ]
    for name, spec in tasks.items():
        try:
            parse_task(spec)
        except InputError as error:
            problems.append(f"data.{name}: {error.what} ({error.got}), allowed: {error.allowed}")
    return problems


def _unit_problems(config: RunConfig) -> list[str]:
    """Return which ways to rank cannot cut whole units, one line each."""
    unit = config.selection.unit
    if unit == "weight":
        return []
    return [
        f"{location}: whole {unit}s are located in one round; leave its rounds out"
        for location in _in_rounds(config.studies.model_dump(), "studies")
    ]


def _in_rounds(values: object, location: str) -> Iterator[str]:
    """Yield where something is to be located in more than one round."""
    if isinstance(values, Mapping):
        if values.get("rounds", 1) > 1:
            yield location
        for name, value in values.items():
            yield from _in_rounds(value, f"{location}.{name}")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from _in_rounds(value, f"{location}.{number}")


def _gate_problems(config: RunConfig) -> list[str]:
    """Return which requirements name a study that does not run, one line each."""
    running = [name for name, section in config.studies if section is not None]
    return [
        f"require: {claim!r} names no study that runs ({', '.join(running)})"
        for claim in config.require
        if claim.partition(":")[0].strip() not in running
    ]


def _entries(values: object, path: str) -> Mapping[str, object] | None:
    """Return the mapping at a dotted path, None if none is there."""
    for step in path.split("."):
        values = values.get(step) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else None


def _references(
    model: type[Section], values: Mapping[str, object], path: tuple[str, ...]
) -> Iterator[_Reference]:
    """Yield what a section names, fields that are left out with their defaults."""
    for name, field in model.model_fields.items():
        if name in values:
            value = values[name]
        elif not field.is_required():
            value = field.get_default(call_default_factory=True)
        else:
            continue
        yield from _references_in(field.annotation, field.metadata, value, (*path, name))
    for mapping, names in model.needs.items():
        yield from (_Reference(".".join(path), name, mapping) for name in names)


def _references_in(
    annotation: object, marks: Sequence[object], value: object, path: tuple[str, ...]
) -> Iterator[_Reference]:
    """Yield what a value of a type and its marks (`Names`) names, as far as it is of that type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(value, str):
        for mark in marks:
            if isinstance(mark, Names):
                yield _Reference(".".join(path), value, mark.mapping)
    if origin is Annotated:
        yield from _references_in(inner[0], inner[1:], value, path)
    elif origin in (Union, types.UnionType):
        for alternative in inner:
            yield from _references_in(alternative, (), value, path)
    elif origin is tuple and isinstance(value, list | tuple):
        # The last type holds for what follows: (A, ...) is a tuple of any length.
        item_types = [item_type for item_type in inner if item_type is not ...]
        for index, item in enumerate(value):
            item_type = item_types[min(index, len(item_types) - 1)]
            yield from _references_in(item_type, (), item, (*path, str(index)))
    elif origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references_in(inner[1], (), item, (*path, str(key)))
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        yield from _references(annotation, value, path) if isinstance(value, Mapping) else ()


def parse_config(values: object, source: str, folder: Path | None = None) -> RunConfig:
    """Check a configuration.

    Args:
        values: What it says.
        source: What it is called, for messages.
        folder: Where the FILE of a fitted judge is looked for first; None for the working
            directory. The configuration that comes back has the whole path.

    Raises:
        InputError: Lists every problem with its place in the file: values that do not fit and names
            that are not defined.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'whole file'}: {problem['msg']}"
            for problem in error.errors()
        ]
        problems += name_problems(values) if isinstance(values, Mapping) else []
    else:
        problems = name_problems(config.model_dump()) + _measure_problems(config)
        problems += _gate_problems(config) + _task_problems(config) + _unit_problems(config)
        if not problems:
            return _with_whole_judge(config, folder)
    shown = problems[:MOST_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown):,} more")
    raise InputError(
        f"{source} has {len(problems)} problem(s)",
        got="\n    ".join(shown),
        fix="mend the file; `resect study init` writes a commented example",
    )


def _with_whole_judge(config: RunConfig, folder: Path | None) -> RunConfig:
    """Return a configuration that names the file of its judge from wherever it is read.

    A place that is there neither in the folder nor where the command runs stays as it is, and is
    refused when a run begins.
    """
    family, _, option = config.evaluation.judge.partition(":")
    if family != "fitted" or not option:
        return config
    whole = ",".join(_whole(text, folder) for text in option.split(",", 1))
    evaluation = config.evaluation.model_copy(update={"judge": f"{family}:{whole}"})
    return config.model_copy(update={"evaluation": evaluation})


def _whole(text: str, folder: Path | None) -> str:
    if not text or Path(text).expanduser().is_absolute():
        return text
    roots = [Path.cwd()] if folder is None else [folder.absolute(), Path.cwd()]
    paths = (root / text for root in roots)
    return str(next((path for path in paths if path.exists()), text))


def load_config(path: str | Path) -> RunConfig:
    """Read a YAML configuration.

    Raises:
        InputError: The file is missing, is not YAML or does not fit; all problems at once.
    """
    return parse_config(read_values(path), str(path), Path(path).parent)


def read_values(path: str | Path) -> object:
    """Read a YAML file without checking what it says.

    Raises:
        InputError: The file is missing or is not YAML.
    """
    try:
        return read_yaml(read_text(path, limit=MOST_YAML), path)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid YAML", got=str(error)) from error


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that runs again as it is."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
