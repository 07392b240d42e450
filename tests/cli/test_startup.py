"""What commands load before they answer: wall clocks differ, the modules that are loaded do not."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from resect.cli import FILES, app

HEAVY = {
    "accelerate", "datasets", "inspect_ai", "jinja2", "lm_eval", "matplotlib", "numpy", "pandas",
    "peft", "pyarrow", "scipy", "torch", "transformers", "trl", "yaml",
}  # fmt: skip


def loaded(*words: str) -> set[str]:
    """Return the names of the modules that a command has loaded when it ends."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"sys.argv = {['resect', *words]!r}\n"
        "from resect.cli import main\n"
        "main()\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(shown.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "words", [("study", "list"), ("--help",), ("study", "list", "--help"), ("run", "--help")]
)
def test_what_only_tells_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    assert {name.partition(".")[0] for name in loaded(*words)} & HEAVY == set()


def test_a_command_does_without_the_files_of_the_others() -> None:
    ours = {name for name in loaded("study", "list") if name.startswith("resect.")}
    assert {name for name in ours if name.startswith("resect.cli.")} == {
        "resect.cli.options", "resect.cli.show", "resect.cli.study",
    }  # fmt: skip
    assert {name for name in ours if name.startswith("resect.runs")} == set()


def test_the_list_of_files_says_what_they_register() -> None:
    for file in dict.fromkeys(FILES.values()):
        holder = typer.Typer()
        importlib.import_module(f"resect.cli.{file}").register(holder)
        registered = set(typer.main.get_group(holder).commands)
        assert registered == {name for name, place in FILES.items() if place == file}


def test_an_unknown_command_is_told_its_neighbour() -> None:
    from typer.testing import CliRunner

    assert "Did you mean 'eval'" in CliRunner().invoke(app, ["evla"]).output


@pytest.mark.parametrize("asked", [False, True])
def test_what_libraries_plan_is_not_told_to_users_of_commands(asked: bool) -> None:
    code = (
        "import sys, warnings\n"
        "from resect.cli import app, main\n"
        "@app.callback()\n"
        "def warn():\n"
        "    warnings.warn('soon gone', FutureWarning)\n"
        "sys.argv = ['resect', 'study', 'list']\n"
        "main()\n"
    )
    options = ["-W", "default"] if asked else []
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("soon gone" in done.stderr) == asked


def test_public_names_are_listed_and_documented() -> None:
    import resect

    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text("utf-8")
    names = set(resect.__all__) - {"__version__"}
    assert names <= set(dir(resect))
    assert {name for name in names if f".{name}\n" not in page} == set()
