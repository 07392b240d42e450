"""What a folder is that resect wrote, for commands that are given another one than they take."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from resect.errors import InputError

Kind = Literal["run", "unfinished run", "evaluation", "sets", "audit", "cut", "checkpoint", ""]


class _Mark(NamedTuple):
    """Files that tell what a folder is, the most telling first."""

    kind: Kind
    files: tuple[str, ...]


MARKS = (
    _Mark("audit", ("audit.json",)),
    _Mark("sets", ("sets.json",)),
    _Mark("run", ("config.yaml", "manifest.json")),
    _Mark("unfinished run", ("config.yaml",)),
    _Mark("evaluation", ("results.json", "records/intact.parquet")),
    _Mark("cut", ("resect.json", "config.json")),
    _Mark("checkpoint", ("config.json",)),
)
WORDS: dict[Kind, str] = {
    "run": "a finished run",
    "unfinished run": "a run that is not finished",
    "evaluation": "an evaluation (resect eval)",
    "sets": "evaluations of several sets (resect eval)",
    "audit": "an audit (resect audit)",
    "cut": "a checkpoint that resect prune or restore wrote",
    "checkpoint": "a checkpoint",
    "": "nothing that resect wrote as a whole",
}
AGAIN: dict[Kind, str] = {
    "unfinished run": "finish it first: resect study run {folder}/config.yaml -o {folder} --resume",
    "evaluation": "evaluate again with the options under provenance.request in "
    "{folder}/results.json, and put both side by side: resect report --compare {folder} NEW",
    "sets": "evaluate again with the options under provenance.request in the results.json of each "
    "set, and put both side by side: resect report --compare {folder} NEW",
    "audit": "audit again with the options under facts.request in {folder}/audit.json",
    "cut": "prune the source again that {folder}/resect.json names; a mask of the same hash gives "
    "the same bits",
}


def kind_of(folder: Path) -> Kind:
    """Return what a folder is, by the files in it."""
    for mark in MARKS:
        if all((folder / name).is_file() for name in mark.files):
            return mark.kind
    return ""


def no_run(folder: Path) -> InputError:
    """Return the message for a folder that is no finished run where one is asked for."""
    kind = kind_of(folder)
    return InputError(
        f"{folder} holds no finished run",
        got=WORDS[kind] if folder.is_dir() else "no such folder",
        allowed="a folder that `resect run`, `study run`, `sweep` or `demo` wrote",
        fix=AGAIN.get(kind, "").format(folder=folder),
    )
