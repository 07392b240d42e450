"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys

import click
import typer
from rich.console import Console

from resect.cli import (
    artefacts,
    audit,
    bench,
    data,
    doors,
    evaluation,
    locate,
    masks,
    models,
    studies,
    sweep,
)
from resect.errors import ResectError, visible

STOPPED = 130

app = typer.Typer(
    name="resect",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the weights of a language model behind a behaviour, cut them out, measure what "
    "changed and say whether the evidence holds.",
    epilog="Start here: [bold]resect demo --quick[/bold]",
)
artefacts.register(app)
bench.register(app)
data.register(app)
locate.register(app)
models.register(app)
evaluation.register(app)
studies.register(app)
sweep.register(app)
masks.register()
audit.register(app)
doors.register(app)


def main() -> None:
    """Run the command line; exit 0 done, 1 a bug, 2 something the user can fix, 130 stopped."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = app(standalone_mode=False)
    except ResectError as error:
        errors.print("[bold red]error:[/bold red] ", end="")
        errors.print(visible(str(error)), markup=False)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = STOPPED
    if code == STOPPED:  # typer returns it for a KeyboardInterrupt
        errors.print(
            "stopped: nothing is half-written; run the same command again to go on", markup=False
        )
    sys.exit(code if isinstance(code, int) else 0)
