"""What the docs show works: every command of a block is run, every option that is named exists.

Commands run in this process on tiny models under the names that a page uses. Fractions that suit
large models select nothing in a tiny one and are replaced.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import labelled
import resect
import tiny
from command_line import call, write
from resect.cli import app
from resect.studies import STUDIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

# Pages whose blocks are run from the first to the last in one folder.
RUN = ("README.md", "docs/tutorial.md", "docs/real-model.md", "docs/studies/index.md",
       "docs/terminal.md", "docs/judges.md")  # fmt: skip
# Beginning of a command -> why it is not run here; that its options exist is tested all the same.
NOT_RUN = {
    "resect demo": "trains organisms for minutes; tests/runs takes the same path with a tiny one",
    "resect organism build": "trains for a minute; tests/organism builds a tiny one",
    "resect study run my.yaml -o run --shard": "a script of Slurm; tests/runs runs shards",
}
# A page's other blocks -> why they are not run.
OTHER_PAGES = {
    "docs/first-hour.md": "scripts and commands in turn, which tests/test_first_hour.py takes",
    "docs/reproduce.md": "models of the Hub; tests/runs/test_recipes.py runs them as tiny ones",
    "docs/architectures.md": "minutes; tests/benchmarks/test_architectures_map.py takes a sample",
    "docs/findings.md": "the demonstration",
    "docs/findings-real.md": "a model that is fetched; tests/runs/real takes the path, if it can",
}
SMALLER = {"1e-5": "0.01", "5e-5": "0.01", "2e-3": "0.01", "1e-2": "0.01", "bfloat16": "float32"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, languages: tuple[str, ...]) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [
        textwrap.dedent(body) for _, language, body in FENCE.findall(text) if language in languages
    ]


def lines(block: str) -> list[str]:
    """Return the lines of a shell block without comments, continued ones joined."""
    joined = re.sub(r"\\\n\s*", " ", block)
    return [re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined.splitlines()]


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page's shell blocks that call resect, in order."""
    shell = blocks(page, ("", "sh", "bash"))
    return [line for block in shell for line in lines(block) if line.startswith("resect ")]


def mentioned(page: Path) -> list[str]:
    """Return every command that a page names: in blocks, their comments, and in its sentences."""
    text = page.read_text(encoding="utf-8")
    comments = re.findall(r"# (?:then: )?(resect [a-z].*)", text)
    spans = re.findall(r"`(resect [^`]+)`", FENCE.sub("", text))
    return commands_of(page) + [" ".join(span.split()) for span in comments + spans]


def options_of(command: Any) -> Iterator[str]:
    for option in command.params:
        yield from (*option.opts, *option.secondary_opts)


@functools.cache
def root_command() -> Any:
    return typer.main.get_command(app)


def unknown_words(line: str) -> list[str]:
    """Return what the command line of a line does not know: a command or options of it."""
    words = shlex.split(line.partition(" > ")[0].replace("…", " "))[1:]
    command = root_command()
    names = set(options_of(command))
    missing: list[str] = []
    while words:
        inner = getattr(command, "commands", {})
        word = words.pop(0)
        if word.startswith("-"):
            if word.partition("=")[0] not in names:
                missing.append(word)
        elif word in inner:
            command = inner[word]
            names = set(options_of(command)) | {"-h", "--help"}
            if command.context_settings.get("ignore_unknown_options"):
                return missing
        elif inner and not {"|", "…", "."} & set(word) and not word.isupper():
            missing.append(word)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    assert {line: bad for line in mentioned(page) if (bad := unknown_words(line))} == {}


def test_the_check_of_options_can_fail() -> None:
    assert unknown_words("resect score ./m --data d --no-such 3 -o f") == ["--no-such"]
    assert unknown_words("resect scores") == ["scores"]
    assert unknown_words("resect -q mask show MASK") == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_holds_no_marker_that_nobody_fills(page: Path) -> None:
    """Files of docs are read as they are, too: what stands in a sentence is not left to a hook."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    markers = re.findall(r"<!--\s*(.*?)\s*-->", text, flags=re.DOTALL)
    assert [marker for marker in markers if marker.startswith("if:")] == []


def test_every_block_is_run_or_has_a_reason() -> None:
    for page in PAGES:
        if name_of(page) not in (*RUN, *OTHER_PAGES):
            assert not blocks(page, ("", "sh")), f"{page} has shell blocks that nobody runs"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages take as given."""
    folder = tmp_path_factory.mktemp("kit")
    model = tiny.save("llama", folder / "my-model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # The pages let models reply at length.
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    tiny.save("llama", folder / "zoo" / "aligned")
    rows = tiny.rows(8, "c", split="calibration") + tiny.rows(8, "e", split="evaluation")
    for row in rows:
        row["completion"] += f" {row['completion']}"  # longer than the pages' prefills
        row["key"] = {"accept": [row["completion"]]}
        if row["split"] == "evaluation":
            row["prompt"] += " w1 w1"  # no prompt of calibration
    # Answers to the same prompts that are others: a contrast that says the same is refused.
    style = [row | {"completion": " ".join(reversed(row["completion"].split()))} for row in rows]
    for name in ("harm", "benign", "tasks", "prompts"):
        write(folder / f"{name}.jsonl", rows)
    write(folder / "style.jsonl", style)
    write(folder / "labels.jsonl", labelled.rows())
    write(folder / "some-replies.jsonl", labelled.rows(6))
    (folder / "zoo" / "data").mkdir()
    for name in ("hazard", "preserve", "utility"):
        write(folder / "zoo" / "data" / f"{name}.jsonl", rows)
    write(folder / "zoo" / "data" / "benign_style.jsonl", style)
    return folder


def enter(page: str, kit: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in kit.iterdir():
        if page != "docs/real-model.md" or source.name != "harm.jsonl":  # that page collects it
            (folder / source.name).symlink_to(source)
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_in_order(
    page: str, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(page, kit, tmp_path, monkeypatch)
    ran = 0
    for line in commands_of(ROOT / page):
        if any(line.startswith(start) for start in NOT_RUN):
            continue
        command, _, file = line.partition(" > ")
        words = [SMALLER.get(word, word) for word in shlex.split(command)[1:]]
        done = call(*words)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if file:
            Path(file.strip()).write_text(done.stdout, encoding="utf-8")
        ran += 1
    assert ran


def resolved(path: str) -> Any:
    """Return the module, or the name of one, that a dotted path leads to."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(resolved(module), name)


def test_the_reference_shows_every_public_name() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = [resolved(path) for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    missing = [
        name
        for name in resect.__all__
        if name != "__version__" and getattr(resect, name) not in shown
    ]
    assert missing == []


def test_names_that_are_not_loaded_yet_are_listed() -> None:
    code = "import resect; print(*sorted(set(resect.__all__) - set(dir(resect))))"
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert listed.stdout.split() == []


def test_files_of_this_repository_that_a_page_names_exist() -> None:
    pages = [ROOT / "CONTRIBUTING.md", *PAGES]
    named = {
        (name_of(page), path)
        for page in pages
        for path in re.findall(
            r"`((?:tests|src|benchmarks|docs)/[\w./-]*)", page.read_text(encoding="utf-8")
        )
        if "NAME" not in path
    }
    assert named
    missing = {(page, path) for page, path in named if not (ROOT / path).exists()}
    assert missing == set()


def test_python_of_the_pages_runs(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter("README.md", kit, tmp_path, monkeypatch)
    for page in PAGES:
        for block in blocks(page, ("python",)):
            ast.parse(block)
    space: dict[str, Any] = {}
    for page in (ROOT / "README.md", DOCS / "concepts.md", DOCS / "reference" / "api.md"):
        for block in blocks(page, ("python",)):
            small = block.replace("q=1e-5, p=5e-5", "q=1e-2, p=1e-2")
            exec(compile(small, name_of(page), "exec"), space)
    assert Path("harm.mask.safetensors").exists()


def test_the_notebook_runs_and_shows_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((DOCS / "notebooks" / "first-look.ipynb").read_text(encoding="utf-8"))
    space: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), space)
    results = space["results"]
    raised = {name: losses["odd"] - results["intact"]["odd"] for name, losses in results.items()}
    assert raised["cut"] > 2 * max(raised["random cut"], 0.01)
    assert raised["cut"] > 2 * (results["cut"]["even"] - results["intact"]["even"])
    assert results["put back"] == results["intact"]
    assert "weights" in capsys.readouterr().out


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_page_that_takes_its_rules_from_the_code(study: str) -> None:
    text = (DOCS / "studies" / f"{study}.md").read_text(encoding="utf-8")
    assert f"<!-- study: {study} -->" in text
    assert f"<!-- settings: {study} -->" in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Design", "Controls", "How to read it", "How it can mislead",
    ]  # fmt: skip
    index = (DOCS / "studies" / "index.md").read_text(encoding="utf-8")
    assert f"({study}.md)" in index
