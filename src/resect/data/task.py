"""A SPEC that names lm-eval tasks: `lm-eval:arc_easy,piqa#questions=200,few_shot=5`.

As in every SPEC the settings stand behind a #, so that a configuration, a record and a replay hold
them too. What a task asks is nothing that this part can load; `resect.evaluation.tasks` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resect.errors import InputError
from resect.records import TASK_PREFIX

MARK = "#"
EXAMPLE = f"{TASK_PREFIX}arc_easy{MARK}questions=200"


@dataclass(frozen=True)
class TaskSpec:
    """What a SPEC says of lm-eval tasks.

    Attributes:
        names: Names of tasks, groups or tags.
        questions: Most questions of each task, drawn with a fixed seed; None for all.
        few_shot: Solved examples in front of each question; None for each task's own number.
        chat: Whether questions go through the model's chat template.
        metric: lm-eval's metric that marks a question; "" for each task's first that can.
        filter: lm-eval's filter of the answers; "" for each task's first.
        include_path: Folder with task files of one's own.
    """

    names: tuple[str, ...]
    questions: int | None = None
    few_shot: int | None = None
    chat: bool = False
    metric: str = ""
    filter: str = ""
    include_path: Path | None = None


def is_task(spec: str) -> bool:
    """Tell whether a SPEC names lm-eval tasks."""
    return spec.startswith(TASK_PREFIX)


def parse_task(spec: str) -> TaskSpec:
    """Read a SPEC that names lm-eval tasks.

    Raises:
        InputError: It names none, or a setting that there is not, or one without its value.
    """
    listed, mark, settings = spec.removeprefix(TASK_PREFIX).partition(MARK)
    names = tuple(name.strip() for name in listed.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise InputError(
            "cannot read which lm-eval tasks are meant",
            got=repr(spec),
            allowed=f"{TASK_PREFIX}TASK, or several names with commas, each once",
            fix=f"for instance {EXAMPLE}",
        )
    values: dict[str, Any] = {}
    for entry in settings.split(",") if mark else ():
        name, equals, text = (word.strip() for word in entry.partition("="))
        read = _SETTINGS.get(name)
        value = read(text) if read is not None and equals and text else None
        if value is None or name in values:
            raise InputError(
                "cannot read a setting of an lm-eval task",
                got=repr(entry) + (" again" if name in values else f" in {spec!r}"),
                allowed="questions=N, few_shot=N, chat=yes, metric=NAME, filter=NAME, "
                "include_path=FOLDER",
                fix=f"for instance {EXAMPLE}",
            )
        values[name] = value
    return TaskSpec(names, **values)


def with_settings(spec: str, settings: Mapping[str, object]) -> str:
    """Return a SPEC with more settings, by their names; None leaves one as it is.

    Raises:
        InputError: It has one of them already, or they cannot be read back.
    """
    extra = ",".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    whole = f"{spec}{',' if MARK in spec else MARK}{extra}" if extra else spec
    parse_task(whole)
    return whole


def _number(smallest: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        return int(text) if text.isdecimal() and int(text) >= smallest else None

    return read


_SETTINGS: dict[str, Callable[[str], object]] = {
    "questions": _number(1),
    "few_shot": _number(0),
    "chat": {"yes": True, "no": False}.get,
    "metric": str,
    "filter": str,
    "include_path": lambda text: Path(text).expanduser(),
}
