"""Configurations for published models, found by name, and changes to them from the command line.

A recipe is a YAML file beside this one. `recipe:NAME` stands for it wherever a configuration is
read. A configuration with a line `extends: SOURCE` takes over what it does not say from another
recipe or file: mappings are joined key by key, everything else is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from resect.errors import InputError, unknown_name
from resect.files.reading import read_yaml
from resect.runs.config import RunConfig, parse_config, read_values

FOLDER = Path(__file__).parent
PREFIX = "recipe:"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with resect."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """Return a recipe as it is written, comments too.

    Raises:
        InputError: There is no recipe of this name.
    """
    return _path(name).read_text(encoding="utf-8")


def recipe_title(name: str) -> str:
    """Return the first comment of a recipe, which says what it is."""
    return recipe_text(name).partition("\n")[0].lstrip("# ")


def _path(name: str) -> Path:
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return FOLDER / f"{name}.yaml"


def read_config(source: str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a configuration and change it before it is checked.

    Args:
        source: Path of a YAML file, or `recipe:NAME`.
        changes: `KEY=VALUE` each; a dotted key reaches into sections, the value is read as YAML:
            `models.aligned=./my-model`, `seeds=[0, 1]`, `studies.jailbreak=null`.

    Raises:
        InputError: The source or a change cannot be read, or the outcome does not fit.
    """
    values = _values(source, ())
    for change in changes:
        values = _joined(values, _change(change))
    return parse_config(values, source)


def _values(source: str, seen: tuple[str, ...]) -> dict[str, object]:
    """Return the values of a source, joined with those of what it extends."""
    if source in seen:
        raise InputError("a configuration extends itself", got=" → ".join((*seen, source)))
    is_recipe = source.startswith(PREFIX)
    path = _path(source.removeprefix(PREFIX)) if is_recipe else Path(source)
    values = read_values(path)
    if not isinstance(values, dict):
        raise InputError(f"{source} is no configuration", got=type(values).__name__)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    base = str(parent)
    if not base.startswith(PREFIX) and not is_recipe:
        # A path is meant as seen from the file that names it.
        base = str(path.parent / base)
    return _joined(_values(base, (*seen, source)), values)


def _joined(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    joined = dict(below)
    for key, value in above.items():
        old = joined.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            joined[key] = _joined(old, value)
        else:
            joined[key] = value
    return joined


def _change(text: str) -> dict[str, object]:
    """Return the nested mapping that a `KEY=VALUE` stands for."""
    key, equals, written = text.partition("=")
    steps = key.split(".")
    if not equals or not all(step.strip() for step in steps):
        raise InputError(
            "cannot read a change", got=repr(text), allowed="KEY=VALUE, for instance seeds=[0]"
        )
    *outer, last = steps
    change: dict[str, object] = {last.strip(): read_yaml(written, f"the value of {key}")}
    for step in reversed(outer):
        change = {step.strip(): change}
    return change
