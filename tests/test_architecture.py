"""The house rules that a machine can check: floors, sizes, names, places, seeds."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import resect
from resect.studies import STUDIES

SOURCE = Path(resect.__file__).parent
HEAVY = {
    "torch", "transformers", "datasets", "peft", "trl", "accelerate", "matplotlib", "scipy",
    "pyarrow", "typer", "rich", "jinja2", "pydantic", "inspect_ai", "lm_eval",
}  # fmt: skip

# The plan of the house: a part may import the parts of earlier lines; there is no more to learn.
# Function bodies count, so that no circle hides in one. Moving a part is a change of the design, to
# be argued for in the commit.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("records",),
    ("files", "machine", "stats"),
    ("data", "model", "weights", "report"),
    ("edit", "studies"),
    ("attribution", "organism", "export"),
    ("evaluation",),
    ("audit", "planted", "integrations", "runs"),
    ("cli",),
    ("__main__", "__init__"),
)
# What an earlier line would allow and the house does not.
NEVER = {
    ("report", "weights"), ("report", "model"), ("weights", "model"), ("studies", "model"),
}  # fmt: skip

# The heavy packages that a part may import.
PACKAGES: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": set(),
    "errors": set(),
    "records": {"torch"},  # in types alone; `test_loads_without_torch` holds that
    "files": {"pyarrow", "pydantic"},  # pydantic checks what is read, and is loaded for that alone
    "machine": {"torch"},
    "stats": {"scipy"},
    "data": {"datasets", "pydantic", "jinja2", "transformers"},
    "model": {"torch", "transformers", "accelerate"},
    "weights": {"torch", "scipy"},
    "report": {"matplotlib", "jinja2", "scipy"},
    "edit": {"torch", "transformers", "datasets", "peft", "trl"},
    "studies": {"scipy", "pydantic"},
    "attribution": {"torch"},
    "organism": {"torch", "transformers", "trl", "peft", "datasets"},
    "export": {"torch", "jinja2"},
    "evaluation": {"torch", "transformers", "peft", "inspect_ai"},
    "audit": {"torch", "peft"},
    "planted": {"torch", "scipy", "matplotlib", "transformers"},
    "integrations": {"torch", "transformers", "inspect_ai", "lm_eval"},
    "runs": {"torch", "transformers", "accelerate", "pydantic"},
    "cli": {"typer", "rich", "torch"},
}

# Parts that must answer on a machine, or in a moment, without torch.
TORCH_FREE = (
    "resect",
    "resect.cli",
    "resect.report",
    "resect.runs.config",
    "resect.stats",
    "resect.studies",
)

LIMITS = {
    "parts in the root": 24,
    "storeys": 9,
    "arrows between parts": 130,
    "longest module": 500,
    "longest function": 60,
    "pronouns among names, %": 11.0,
    "`Any` in 1,000 lines": 26.0,
}
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


@functools.cache
def modules() -> tuple[tuple[str, Path, ast.Module], ...]:
    return tuple(_modules())


def _modules() -> Iterator[tuple[str, Path, ast.Module]]:
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


def arrows() -> dict[tuple[str, str], list[str]]:
    """Return for each pair of parts, importer and imported, the places of the imports."""
    found: dict[tuple[str, str], list[str]] = {}
    names = {part for part, _, _ in modules()}
    for part, path, tree in modules():
        for name in imports(tree):
            words = name.split(".")
            if words[0] == "resect" and len(words) > 1 and words[1] in names - {part}:
                found.setdefault((part, words[1]), []).append(str(path.relative_to(SOURCE)))
    return found


def storey(part: str, over: dict[tuple[str, str], list[str]]) -> int:
    """Return how many parts the longest way down from a part passes, itself included."""
    return 1 + max((storey(to, over) for of, to in over if of == part), default=0)


def test_every_part_has_a_floor() -> None:
    parts = {part for part, _, _ in modules()}
    assert parts == {part for floor in FLOORS for part in floor} == set(PACKAGES)


def test_imports_point_to_earlier_lines() -> None:
    line = {part: number for number, floor in enumerate(FLOORS) for part in floor}
    wrong = {
        (of, to): files
        for (of, to), files in arrows().items()
        if line[of] <= line[to] or (of, to) in NEVER
    }
    assert wrong == {}


@pytest.mark.parametrize("part", sorted(PACKAGES))
def test_heavy_packages(part: str) -> None:
    for of, path, tree in modules():
        for name in imports(tree) if of == part else ():
            package = name.split(".")[0]
            assert package not in HEAVY - PACKAGES[part], f"{path.name} imports {name}"


def test_contributing_shows_the_floors() -> None:
    page = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- floors -->\n")[2].partition("<!-- end -->")[0]
    assert re.findall(r"^\| \d+ \| (.*?) \|", shown, flags=re.MULTILINE) == [
        ", ".join(f"`{part}`" for part in floor) for floor in FLOORS
    ]


# Names that say nothing of what they hold.
PRONOUNS = set(
    "found one at place part facts kind known own first other asked second most wanted kept how "
    "held what given said left rest each more here why both told least who there made".split()
)


def share_of_pronouns() -> float:
    """Return the share of assigned names and parameters that are pronouns, or like them."""
    names = [
        node.arg if isinstance(node, ast.arg) else node.id
        for _, _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.arg)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    ]
    return sum(name in PRONOUNS for name in names) / len(names)


def any_per_1000_lines() -> float:
    """Return how often `Any` stands in 1,000 lines, imports included."""
    lines = count = 0
    for _, path, tree in modules():
        lines += len(path.read_text(encoding="utf-8").splitlines())
        count += sum(
            (isinstance(node, ast.Name) and node.id == "Any")
            or (isinstance(node, ast.alias) and node.name == "Any")
            for node in ast.walk(tree)
        )
    return 1000 * count / lines


def test_the_house_in_figures(record_property: Callable[[str, object], None]) -> None:
    """Hold each figure under its limit; the limits may only shrink."""
    over = arrows()
    lengths = [
        node.end_lineno - node.lineno + 1
        for _, _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    figures = {
        "parts in the root": len({part for part, _, _ in modules()}),
        "storeys": max(storey(part, over) for part in PACKAGES),
        "arrows between parts": len(over),
        "longest module": max(
            len(path.read_text(encoding="utf-8").splitlines()) for _, path, _ in modules()
        ),
        "longest function": max(lengths),
        "pronouns among names, %": 100 * share_of_pronouns(),
        "`Any` in 1,000 lines": any_per_1000_lines(),
    }
    for name, value in figures.items():
        record_property(name, value)
        sys.stdout.write(f"\n{name}: {value:.4g} (at most {LIMITS[name]:g})")
    assert {name: value for name, value in figures.items() if value > LIMITS[name]} == {}


def test_studies_import_no_sibling() -> None:
    for part, path, tree in modules():
        if part == "studies" and path.name != "__init__.py":
            inner = {
                name.split(".")[2] for name in imports(tree) if name.startswith("resect.studies.")
            }
            assert inner & set(STUDIES) == set(), path.name


def test_every_module_imports() -> None:
    names = [info.name for info in pkgutil.walk_packages([str(SOURCE)], prefix="resect.")]
    assert len(names) > 30
    for name in names:
        importlib.import_module(name)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_loads_without_torch(name: str) -> None:
    code = f"import {name}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_functions_take_few_parameters() -> None:
    for _, path, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args.posonlyargs + node.args.args
            if node.name not in TOO_MANY_PARAMETERS:
                count = len(given) if given[:1] and given[0].arg != "self" else len(given[1:])
                assert count <= MOST_PARAMETERS, f"{path.name}: {node.name}"


def test_only_files_opens_files_for_writing() -> None:
    for part, path, tree in modules():
        for node in ast.walk(tree):
            if part == "files" or not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            assert name not in {"write_text", "write_bytes"} or "files" in ast.unparse(node), (
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
