"""The command line: parse, call, print. Nothing heavy is imported before a command runs.

A file has a function `register` that adds its commands; `FILES` says which these are, so that one
command can be had without the other files.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from resect.cli import show
from resect.errors import ResectError, visible
from resect.machine.products import choose_products

# Command -> the file of this folder that holds it, in the order of the help.
FILES = {
    "score": "score",
    "select": "score",
    "locate": "locate",
    "import": "checkpoint",
    "coverage": "checkpoint",
    "prune": "checkpoint",
    "restore": "checkpoint",
    "eval": "eval",
    "demo": "demo",
    "real": "real",
    "report": "report",
    "sweep": "sweep",
    "audit": "audit",
    "run": "run",
    "reproduce": "reproduce",
    "tasks": "tasks",
    "lm-eval": "tasks",
    "mask": "mask",
    "bench": "bench",
    "data": "data",
    "judge": "judge",
    "organism": "organism",
    "study": "study",
}
STOPPED = 130
# Commands that go on where they were: with --resume, and by themselves.
RESUMING = ("run", "study", "sweep")
GOING_ON = ("demo", "locate", "real", "reproduce")
# Typer may bring its own copy of click, whose errors are not those of the package.
USAGE = cast(
    "type[typer.BadParameter]",
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)


@functools.cache
def _commands_of(file: str) -> Mapping[str, object]:
    """Return the commands of a file by name."""
    holder = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )
    importlib.import_module(f"resect.cli.{file}").register(holder)
    return typer.main.get_group(holder).commands


class _Commands(Mapping[str, object]):
    """The commands by name, each imported and built when it is asked for.

    To read the options of all of them takes longer than most commands that only look something up.
    """

    def __getitem__(self, name: str) -> object:
        return _commands_of(FILES[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FILES)

    def __len__(self) -> int:
        return len(FILES)


class _Group(TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of typer, and no commands that are built already."""
        super().__init__(**{**settings, "commands": _Commands()})


app = typer.Typer(
    name="resect",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the weights of a language model behind a behaviour, cut them out, measure what "
    "changed and say whether the evidence holds.",
    epilog="Start here: [bold]resect demo --quick[/bold]",
)


@app.callback()
def options(
    quiet: Annotated[
        bool,
        typer.Option(
            "-q", "--quiet", callback=show.choose_quiet, help="Print results and errors alone."
        ),
    ] = False,
    machine: Annotated[
        bool,
        typer.Option("--json", callback=show.choose_machine, help="Print one JSON object a line."),
    ] = False,
) -> None:
    """Find weights, cut them, measure what changed; the options here stand before the command."""


def _stopped(words: list[str]) -> str:
    """Return what can be done after a stop, by the command that was stopped."""
    command = next((word for word in words if not word.startswith("-")), "")
    again = "stopped: nothing is half-written; run the same command again"
    if command in RESUMING:
        return f"{again} with --resume, and it goes on"
    return f"{again}, and it goes on" if command in GOING_ON else f"{again} to begin anew"


def main() -> None:
    """Run the command line; exit 0 done, 1 a bug, 2 something the user can fix, 130 stopped."""
    # A scheduler's SIGTERM is heeded as Ctrl-C is: what is half-written is removed.
    with contextlib.suppress(ValueError):  # only the main thread may set it
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not sys.warnoptions:
        # Of libraries, to whoever calls them: a user of commands can do nothing about them.
        warnings.simplefilter("ignore", FutureWarning)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    show.set_mode(show.Mode())
    show.note_readings()
    try:
        code = app(standalone_mode=False)
    except ResectError as error:
        if show.mode().machine:
            show.failed(error.what, got=error.got, allowed=error.allowed, fix=error.fix)
        else:
            errors.print("[bold red]error:[/bold red] ", end="")
            errors.print(visible(str(error)), markup=False)
        sys.exit(2)
    except USAGE as error:
        if show.mode().machine:
            show.failed(error.format_message(), code=error.exit_code)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    if code == STOPPED:  # typer returns it for a KeyboardInterrupt
        errors.print(_stopped(sys.argv[1:]), markup=False)
    sys.exit(code if isinstance(code, int) else 0)


def command() -> None:
    """Run the command line in a process of its own, which may choose how it multiplies."""
    choose_products()
    main()
