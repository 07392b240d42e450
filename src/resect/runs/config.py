"""The configuration of a run: YAML in, checked models out, all errors at once.

What is written here before the run decides the verdicts after it: grids, budgets and thresholds
are part of the configuration and are printed in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from resect.errors import InputError
from resect.files.reading import MOST_YAML, read_text, read_yaml
from resect.studies.design import RunConfig, Section, Studies

# Lines that a message lists.
MOST_SHOWN = 100


# Where a value names an entry of a section; `*` stands for every entry of a mapping or list.
REFERENCES = (
    ("subject", "models"),
    ("target", "targets"),
    ("attack_data.*", "data"),
    ("preserve.data", "data"),
    ("preserve.contrast", "targets"),
    ("evaluation.probes.*", "data"),
    ("targets.*.data", "data"),
    ("targets.*.contrast", "targets"),
    ("studies.compactness.rivals.*", "targets"),
    ("studies.compression.aligned", "models"),
    ("studies.compression.base", "models"),
    ("studies.compression.control", "models"),
    ("studies.compression.others.*", "models"),
    ("studies.compression.pairs.*.*", "models"),
    ("studies.compression.second.target", "targets"),
    ("studies.specificity.benign.*", "targets"),
    ("studies.specificity.matched.*", "targets"),
    ("studies.dissociation.capabilities.*", "targets"),
    ("studies.dissociation.capabilities.*", "evaluation.probes"),
    ("studies.emergent.target", "targets"),
    ("studies.emergent.data", "data"),
    ("studies.emergent.scored_on.*", "models"),
    ("studies.relearning.data", "data"),
    ("studies.relearning.benign", "data"),
    ("studies.stability.paraphrases.*", "targets"),
    ("studies.stability.roles.*", "models"),
    ("studies.stability.models.*", "models"),
    ("studies.frontier.methods.*.target", "targets"),
)


def name_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what a configuration names and does not define, one line each.

    It need not be a valid one: what is of the wrong kind is passed over, so that all that is wrong
    can be said at once.
    """
    values = _with_defaults(values)
    found = [pair for path, section in REFERENCES for pair in _at(values, path, section)]
    if isinstance(_get(values, "studies.emergent"), Mapping):
        found.append(("studies.emergent", "misalignment", "evaluation.probes"))
    problems = []
    for where, name, section in found:
        known = _get(values, section)
        if isinstance(known, Mapping) and name not in known:
            listed = ", ".join(map(str, known)) or "which is empty"
            problems.append(f"{where}: {name!r} is not under {section} ({listed})")
    seeds = values.get("seeds")
    whole = (
        [one for one in seeds if isinstance(one, int)] if isinstance(seeds, list | tuple) else []
    )
    if len(set(whole)) < len(whole):
        problems.append("seeds: a seed stands twice")
    return problems


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in which names that are left out stand as they will be read."""
    fields = RunConfig.model_fields
    filled = {name: fields[name].default for name in ("subject", "target")} | dict(values)
    studies = filled.get("studies")
    if isinstance(studies, Mapping):
        filled["studies"] = {
            name: {**_study_defaults(str(name)), **given} if isinstance(given, Mapping) else given
            for name, given in studies.items()
        }
    return filled


def _study_defaults(name: str) -> dict[str, Any]:
    field = Studies.model_fields.get(name)
    if field is None:
        return {}
    section: type[Section] = get_args(field.annotation)[0]
    return section().model_dump()


def _get(values: Any, path: str) -> Any:
    for step in path.split("."):
        values = values.get(step) if isinstance(values, Mapping) else None
    return values


def _at(values: Any, path: str, section: str, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (place, name, section) for every text at a path of `REFERENCES`."""
    step, _, rest = path.partition(".")
    if not path:
        if isinstance(values, str):
            yield where.removeprefix("."), values, section
    elif step != "*":
        if isinstance(values, Mapping):
            yield from _at(values.get(step), rest, section, f"{where}.{step}")
    elif isinstance(values, Mapping | list | tuple):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in pairs:
            yield from _at(value, rest, section, f"{where}.{key}")


def parse_config(values: Any, source: str) -> RunConfig:
    """Check a configuration.

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
        problems = name_problems(config.model_dump())
        if not problems:
            return config
    shown = problems[:MOST_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown):,} more")
    raise InputError(
        f"{source} has {len(problems)} problem(s)",
        got="\n    ".join(shown),
        fix="mend the file; `resect study init` writes a commented example",
    )


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
        return read_yaml(read_text(path, limit=MOST_YAML), path)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid YAML", got=str(error)) from error


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that runs again as it is."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
