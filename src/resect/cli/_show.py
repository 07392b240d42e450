"""How commands show things: progress on stderr, tables on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resect.errors import visible

# Where nobody watches, wide tables must not be folded to 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def progress(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while the block runs; the yielded function takes done and total."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not (shown and sys.stderr.isatty()),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def say(text: str) -> None:
    """Print one plain line on stdout; nothing in it is read as markup."""
    out.print(Text(visible(text)), soft_wrap=True)


def note(text: str) -> None:
    """Print one plain line on stderr."""
    err.print(Text(visible(text)), soft_wrap=True)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; numbers are rounded for reading, columns without values left out."""
    if not rows:
        return
    columns = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    shown = Table(title=Text(visible(title)), title_justify="left", header_style="bold")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        shown.add_column(
            Text(visible(column)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        shown.add_row(*(Text(visible(_cell(row.get(column)))) for column in columns))
    out.print(shown)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
