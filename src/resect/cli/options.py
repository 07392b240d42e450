"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from resect.errors import InputError

Force = Annotated[
    bool, typer.Option("--force", help="Go on though the models differ; what is written says so.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id[@rev].")]


Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Worker processes.")]


def category_of(text: str | None) -> str:
    """Return a category as an `Origin` has it, "" for all.

    Raises:
        InputError: It is given, and empty: an unset variable must not score everything.
    """
    if text == "":
        raise InputError("the category is empty", got="''", fix="name one, or leave --category out")
    return text or ""
