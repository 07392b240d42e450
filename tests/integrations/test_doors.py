"""The commands of the doors: their help, and what they say without the package behind them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import resect.integrations
from resect.errors import InputError

# Makes a package look as if it were not installed.
WITHOUT = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "lm_eval" else found(name, *more)
from resect.cli import main; main()
"""


@pytest.mark.parametrize(
    "words", [["lm-eval", "ls", "tasks"], ["tasks", "m", "--task", "t", "-o", "o"]]
)
def test_without_lm_eval_the_next_step_is_named(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'resect[lm-eval]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_what_is_missing_is_asked_for() -> None:
    resect.integrations.require("json", "x")
    with pytest.raises(InputError, match=r"pip install 'resect\[x\]'"):
        resect.integrations.require("no_such_package_anywhere", "x")
