"""The house rules that a machine can check: floors, sizes, places, seeds.

`FLOORS` is the plan of the house: which parts of resect and which heavy packages a part may import.
Changing a line of it is a change of the design, to be argued for in the commit.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resect

SOURCE = Path(resect.__file__).parent
HEAVY = {
    "torch", "transformers", "datasets", "peft", "trl", "accelerate", "matplotlib", "scipy",
    "pyarrow", "typer", "rich", "jinja2", "pydantic", "inspect_ai", "lm_eval",
}  # fmt: skip

GROUND = {"errors", "records"}
FIRST = GROUND | {"bounded", "store", "config", "stats"}
SECOND = FIRST - {"config"} | {"mask", "scoreset", "scores", "selection", "edit", "ranks"}
SECOND |= {"binding"}
THIRD = SECOND | {"model", "data", "generate"}
FOURTH = THIRD | {"tune", "attribution", "attacks", "judges", "probes", "evaluate"}
FIFTH = FOURTH | {
    "rules", "config", "cells", "guard", "workbench", "pipeline", "locate", "rounds", "measure",
    "organism", "studies", "agreement",
}  # fmt: skip

# part -> (parts of resect it may import, heavy packages it may import)
FLOORS: dict[str, tuple[set[str], set[str]]] = {
    "__init__": (
        {"data", "edit", "export", "guard", "locate", "mask", "model", "scoreset", "selection"},
        set(),
    ),
    "errors": (set(), set()),
    "fence": (set(), set()),
    "template": ({"errors"}, {"jinja2", "transformers"}),
    "records": ({"errors"}, set()),
    "bounded": ({"errors"}, {"pyarrow"}),
    "store": (GROUND | {"bounded"}, {"pyarrow"}),
    "rules": (set(), {"pydantic"}),
    "config": (GROUND | {"bounded", "rules"}, {"pydantic"}),
    "recipes": ({"errors", "bounded", "config"}, set()),
    "stats": (GROUND, {"scipy"}),
    "mask": (GROUND | {"store"}, {"torch"}),
    "packing": (GROUND, {"torch"}),
    "scoreset": (GROUND | {"store", "mask", "packing"}, {"torch"}),
    "scores": (GROUND, {"torch"}),
    "ranks": (GROUND, {"torch"}),
    "selection": (GROUND | {"stats", "mask", "scoreset"}, {"torch"}),
    "binding": (GROUND | {"mask", "selection"}, {"torch"}),
    "edit": (GROUND | {"mask", "model"}, {"torch"}),
    "model": (SECOND, {"torch", "transformers", "accelerate"}),
    "data": (FIRST - {"config"} | {"template"}, {"datasets", "pydantic"}),
    "generate": (GROUND | {"model"}, {"torch", "transformers"}),
    "tune": (GROUND | {"stats", "template"}, {"torch", "transformers", "datasets", "peft", "trl"}),
    "cells": (GROUND | {"store"}, set()),
    "claims": (GROUND | {"store"}, set()),
    "attribution": (THIRD, {"torch"}),
    # Attribution and rounds, because the refusal-ablation attack is a cut of our own.
    "attacks": (THIRD | {"attribution", "rounds", "tune"}, {"torch"}),
    "agreement": (GROUND | {"stats"}, set()),
    "comparisons": (GROUND | {"stats"}, {"scipy"}),
    "judges": (
        GROUND | {"fence", "generate", "model"},
        {"torch", "transformers", "peft", "inspect_ai"},
    ),
    "probes": (GROUND, set()),
    "evaluate": (FOURTH, {"torch"}),
    "algebra": (GROUND | {"mask", "stats"}, set()),
    "audit": (FOURTH | {"locate"}, {"torch", "peft"}),
    "export": (GROUND | {"bounded", "store", "mask", "edit", "model"}, {"torch", "jinja2"}),
    "guard": (GROUND | {"mask", "model"}, {"torch", "transformers"}),
    "workbench": (FOURTH | {"cells", "config", "rounds"}, {"torch"}),
    "pipeline": (FOURTH | {"cells", "config", "guard", "metrics", "workbench"}, {"torch"}),
    "locate": (FOURTH | {"rounds", "streamed"}, {"torch"}),
    "rounds": (FOURTH, {"torch"}),
    "measure": (FOURTH | {"agreement", "served"}, {"torch"}),
    "organism": (THIRD | {"tune"}, {"torch", "transformers", "trl", "peft", "datasets"}),
    "localise": (FIFTH - {"studies", "pipeline"}, {"torch", "scipy", "matplotlib"}),
    "studies": (FIFTH - {"organism"}, {"scipy"}),
    "run": (FIFTH - {"organism"} | {"claims"}, {"torch"}),
    "metrics": (GROUND | {"bounded", "store", "cells"}, {"accelerate"}),
    "served": (FOURTH, set()),
    "streamed": (THIRD | {"attribution"}, {"torch"}),
    "launch": (FIFTH - {"organism"} | {"run", "forecast", "claims"}, {"torch"}),
    "collect": (FOURTH | {"claims"}, set()),
    "sweep": (GROUND | {"store", "config"}, set()),
    "forecast": (FIFTH | {"recipes"}, {"torch", "transformers"}),
    "auto": (FIFTH | {"run", "sweep", "claims"}, set()),
    "demo": (FIFTH | {"run"}, set()),
    "reproduce": (FIFTH | {"run", "demo", "claims"}, set()),
    "report": (GROUND | {"bounded", "store", "stats"}, {"matplotlib", "jinja2", "scipy"}),
    "integrations": (
        FIFTH - {"organism", "studies"} | {"fence", "template"},
        {"torch", "transformers", "inspect_ai", "lm_eval"},
    ),
    "cli": (
        FIFTH
        | {"run", "integrations", "demo", "report", "localise", "collect", "algebra", "audit"}
        | {"recipes", "sweep", "forecast", "export", "auto", "reproduce", "claims"}
        | {"launch", "metrics"},
        {"typer", "rich", "torch"},
    ),
    "__main__": ({"cli"}, set()),
}

# Parts that must answer on a machine, or in a moment, without torch.
TORCH_FREE = ("resect", "resect.cli", "resect.report", "resect.config", "resect.stats")

LONGEST_MODULE = 400
# name -> lines; the list may only shrink.
LONGER_MODULES: dict[str, int] = {}
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
# name -> why it is longer; the list may only shrink.
TOO_MANY_PARAMETERS = {
    "tasks": "an option of the command line each",
    "audit": "an option of the command line each",
    "score": "an option of the command line each",
    "evaluate": "an option of the command line each",
    "select": "an option of the command line each",
    "coverage": "an option of the command line each",
    "run_study": "an option of the command line each",
    "locate": "the same, and in rounds.py keyword-only",
    "collect": "an option of the command line each",
    "_sums": "a Triton kernel has no structures and no keyword-only arguments",
}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        yield part, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield every imported module, function bodies included, so that no circle hides in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "resect":
                yield from (f"resect.{name.name}" for name in node.names)


def test_every_part_has_a_floor() -> None:
    assert {part for part, _, _ in modules()} <= set(FLOORS)


@pytest.mark.parametrize("part", sorted(FLOORS))
def test_imports_point_up_the_page(part: str) -> None:
    own, heavy = FLOORS[part]
    for found, path, tree in modules():
        if found != part:
            continue
        for name in imports(tree):
            words = name.split(".")
            if words[0] == "resect" and len(words) > 1:
                assert words[1] in own | {part}, f"{path.name} imports {name}"
            elif words[0] in HEAVY:
                assert words[0] in heavy, f"{path.name} imports {name}"


def test_studies_import_no_sibling() -> None:
    for part, path, tree in modules():
        if part == "studies" and path.name != "__init__.py":
            inner = [name for name in imports(tree) if name.startswith("resect.studies.")]
            assert all(name.split(".")[2].startswith("_") for name in inner), path.name


def test_every_module_imports() -> None:
    names = [info.name for info in pkgutil.walk_packages([str(SOURCE)], prefix="resect.")]
    assert len(names) > 30
    for name in names:
        importlib.import_module(name)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_loads_without_torch(name: str) -> None:
    code = f"import {name}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sizes() -> None:
    for _, path, tree in modules():
        most = LONGER_MODULES.get(path.name, LONGEST_MODULE)
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most, path
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path.name}: {node.name}"
            given = node.args.posonlyargs + node.args.args
            if node.name not in TOO_MANY_PARAMETERS:
                count = len(given) if given[:1] and given[0].arg != "self" else len(given[1:])
                assert count <= MOST_PARAMETERS, f"{path.name}: {node.name}"


def test_only_the_store_opens_files_for_writing() -> None:
    for part, path, tree in modules():
        for node in ast.walk(tree):
            if part == "store" or not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            assert name not in {"write_text", "write_bytes"} or "store" in ast.unparse(node), (
                f"{path.name}:{node.lineno} writes a file itself"
            )


def test_nothing_unsafe_or_unseeded() -> None:
    forbidden = (
        "pickle", "torch.load(", "trust_remote_code=True", "yaml.load(", "shell=True",
        "np.random.rand", "np.random.seed", "torch.manual_seed(", "except Exception",
    )  # fmt: skip
    for _, path, _ in modules():
        text = path.read_text(encoding="utf-8")
        assert [word for word in forbidden if word in text] == [], path


def test_weights_are_changed_in_one_place() -> None:
    for part, path, _ in modules():
        if part not in {"edit", "organism"}:
            found = re.findall(
                r"\b(?:p|parameter|weight)\.data\b", path.read_text(encoding="utf-8")
            )
            assert found == [], path


def test_no_assert_for_user_input() -> None:
    for _, path, tree in modules():
        asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert asserts == [], path
