"""The page of peers: whatever resect is said to do there, a test that exists shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "peers.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
WORDS = ("yes", "partly", "no")


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def problems(text: str) -> list[str]:
    """Return what is wrong with the table, a line each."""
    said = []
    for feature, _, word, shown in rows(text):
        tests = TEST.findall(shown)
        if word not in WORDS:
            said.append(f"{feature}: {word!r} is no word for it")
        if bool(tests) != (word == "yes"):
            said.append(f"{feature}: {word} with {len(tests)} tests")
        for path, name in tests:
            file = ROOT / path
            tree = ast.parse(file.read_text("utf-8")) if file.is_file() else ast.Module([], [])
            if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
                said.append(f"{feature}: no test {path}::{name}")
    return said


def test_every_yes_names_a_test_that_exists() -> None:
    text = PAGE.read_text("utf-8")
    assert len(rows(text)) >= 25
    assert problems(text) == []


def test_a_yes_without_its_test_is_seen() -> None:
    table = "| feature | peers | resect | shown by |\n|---|---|---|---|\n"
    for row in (
        "| a | none | yes | nothing |",
        "| a | none | yes | `tests/test_peers_page.py::test_gone` |",
        "| a | none | yes | `tests/gone.py::test_gone` |",
        "| a | none | no | `tests/test_peers_page.py::test_a_yes_without_its_test_is_seen` |",
        "| a | none | maybe | nothing |",
    ):
        assert problems(table + row)
