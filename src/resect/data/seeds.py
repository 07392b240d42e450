"""Seeds of red teams in YAML, as PyRIT keeps them: prompts alone, under `seeds`.

What stands at the top of such a file holds for every seed that does not say otherwise. A seed that
is more than one plain text (a template, a picture, a turn of a conversation) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from resect.errors import InputError
from resect.files.reading import MOST_YAML, read_text, read_yaml

SEED_SUFFIXES = (".yaml", ".yml", ".prompt")
# In older files they stood under `prompts`.
KEYS = ("seeds", "prompts")
# What makes a seed something else than one text to ask.
_OTHER = {
    "parameters": "a template with parameters",
    "conditions": "a seed with conditions",
    "is_jinja_template": "a template",
}


class Seeds(NamedTuple):
    """The rows of a file of seeds, and a line that says what was found."""

    rows: list[dict[str, object]]
    said: str


def read_seeds(path: Path) -> Seeds | None:
    """Return the seeds of a file; None if it is a YAML file of something else.

    Raises:
        InputError: It is not readable, or a seed is more than a text.
    """
    try:
        content = read_yaml(read_text(path, limit=MOST_YAML), path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=str(error)) from error
    if not isinstance(content, Mapping):
        return None
    key = next((key for key in KEYS if isinstance(content.get(key), list)), None)
    if key is None:
        return None
    rows = [
        _row(seed, content, f"{path}: seed {number}")
        for number, seed in enumerate(content[key], start=1)
    ]
    _refuse_groups(content[key], path)
    has = " and ".join(
        f"{ours} = {theirs}"
        for ours, theirs in (("prompt", "value"), ("category", "harm_categories"))
        if any(ours in row for row in rows)
    )
    return Seeds(rows, f"seeds as PyRIT has them: {has}; without completions")


def _row(seed: object, top: Mapping[object, object], where: str) -> dict[str, object]:
    if isinstance(seed, str):
        seed = {"value": seed}
    if not isinstance(seed, Mapping) or not isinstance(seed.get("value"), str):
        raise InputError(f"{where} has no text", got=repr(seed)[:80], allowed="{value: TEXT}")

    def get(name: str) -> object:
        return seed.get(name, top.get(name))

    more = [what for name, what in _OTHER.items() if get(name)]
    if get("data_type") not in (None, "text"):
        more.append(f"data of type {get('data_type')}")
    if get("seed_type") not in (None, "prompt", "objective"):
        more.append(f"a seed of type {get('seed_type')}")
    if get("role") not in (None, "user"):
        more.append(f"a text of the role {get('role')}")
    if more:
        raise InputError(
            f"{where} is more than a text to ask",
            got=", ".join(more),
            allowed="texts of the user without parameters",
            fix="leave it out, or write the texts as rows with a prompt",
        )
    row: dict[str, object] = {"prompt": seed["value"].strip()}
    categories = [*_listed(seed.get("harm_categories")), *_listed(top.get("harm_categories"))]
    if categories:
        row["category"] = "+".join(dict.fromkeys(categories))
    return row


def _listed(value: object) -> list[str]:
    """Return categories as a list; those of the file and of a seed are both a seed's."""
    return [] if not value else list(map(str, value if isinstance(value, list) else [value]))


def _refuse_groups(seeds: list[object], path: Path) -> None:
    """Refuse seeds that belong together: each alone is not what its author meant."""
    kinds = set()
    groups = set()
    for number, seed in enumerate(seeds, start=1):
        if not isinstance(seed, Mapping):
            continue
        objective = seed.get("seed_type") == "objective" or seed.get("is_objective")
        kinds.add("objectives" if objective else "prompts")
        group = seed.get("prompt_group_alias") or seed.get("prompt_group_id")
        if seed.get("sequence") or (group and group in groups):
            raise InputError(
                f"{path}: seed {number} is a part of a group",
                got=f"group {group}, sequence {seed.get('sequence', 0)}",
                allowed="seeds that stand alone",
                fix="write such conversations as rows with messages",
            )
        groups.add(group)
    if len(kinds) > 1:
        raise InputError(
            f"{path} has seeds of two kinds",
            got=" and ".join(sorted(kinds)),
            allowed="one kind a file",
            fix="put the objectives into a file of their own",
        )
