"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Force = Annotated[
    bool, typer.Option("--force", help="Go on though the models differ; what is written says so.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id[@rev].")]


Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Worker processes.")]
