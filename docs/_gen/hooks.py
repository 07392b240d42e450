"""What the docs take from the code, so that they cannot drift from it: a hook of MkDocs.

Pages may contain `<!-- study: NAME -->` (question and rules of a study),
`<!-- settings: NAME -->` (its section of a configuration with the defaults) and
`<!-- sections of studies -->` (the reference of all of these sections). Generated pages: the
command line, the notebook, and those at the root of the repository.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Pages of wide tables, which a command wrote: they take the whole width.
WIDE = ("leaderboard.md", "benchmarks.md", "verdicts.md", "architectures.md")
NOTEBOOKS = ("notebooks/first-look",)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave pages out of the navigation that are neither there nor made here."""
    pages = {"contributing.md", "changelog.md", "reference/cli.md"}
    pages |= {f"{name}.md" for name in NOTEBOOKS}
    present = {
        str(path.relative_to(config.docs_dir)) for path in Path(config.docs_dir).rglob("*.md")
    }
    config.nav = _present(config.nav or [], pages | present)
    return config


def _present(items: list[Any], names: set[str]) -> list[Any]:
    shown: list[Any] = []
    for item in items:
        if isinstance(item, str):
            shown += [item] if item in names else []
            continue
        ((title, inner),) = item.items()
        if isinstance(inner, list):
            shown.append({title: _present(inner, names)})
        elif inner in names:
            shown.append(item)
    return shown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/cli.md": command_line(),
    }
    for name in NOTEBOOKS:
        pages[f"{name}.md"] = notebook_page(Path(config.docs_dir) / f"{name}.ipynb")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Fill in what a page takes from the studies."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["navigation", "toc"]

    markdown = markdown.replace("<!-- sections of studies -->", sections())
    markdown = re.sub(r"<!-- study: (\w+) -->", lambda match: study(match[1]), markdown)
    return re.sub(r"<!-- settings: (\w+) -->", lambda match: settings(match[1]), markdown)


def study(name: str) -> str:
    """Return the question of a study and its claims with their rules at the default thresholds."""
    from resect.studies import STUDIES

    lines = [f"**{STUDIES[name].question}**", "", "| claim | rule |", "|---|---|"]
    lines += [f"| {_cell(claim)} | {_cell(rule)} |" for claim, rule in STUDIES[name].rules()]
    return "\n".join(lines)


def sections() -> str:
    """Return the reference of the sections of all studies, for mkdocstrings to fill in."""
    from resect.studies import STUDIES

    return "\n\n".join(
        f"::: {study.section.__module__}.{study.section.__name__}\n"
        "    options:\n      heading_level: 3\n      members: false"
        for study in STUDIES.values()
    )


def settings(name: str) -> str:
    """Return a section of a configuration as YAML, with its defaults."""
    import yaml

    from resect.studies import STUDIES

    values = STUDIES[name].section().model_dump(mode="json")
    text = yaml.safe_dump({"studies": {name: values}}, sort_keys=False, default_flow_style=None)
    return f"```yaml\n{text}```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").rstrip(":")


def command_line() -> str:
    """Return the reference of every command, from the commands themselves."""
    from resect.cli import app

    root = typer.main.get_command(app)
    parts = [
        "# Command line",
        "Made from the code; `-h` after any command says the same. What stands before a command, "
        "and what the exit codes mean: [terminal](../terminal.md).",
    ]
    parts += _command(root, "resect", ())
    return "\n\n".join(parts) + "\n"


def _command(command: Any, name: str, above: tuple[str, ...]) -> list[str]:
    # Typer brings its own copy of click, so that nothing here asks for click's classes.
    context = typer.Context(command, info_name=name)
    words = (*above, name)
    inner = getattr(command, "commands", None)
    parts = [f"## `{' '.join(words)}`"]
    if command.help:
        parts.append(_plain(command.help))
    if inner is None:
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"```text\n{' '.join(words)} {usage}\n```")
    records = [
        record
        for parameter in command.params
        if "--help" not in parameter.opts and (record := parameter.get_help_record(context))
    ]
    if records:
        rows = [f"| `{names}` | {_table(_plain(text))} |" for names, text in records]
        parts.append("\n".join(["| option | what |", "|---|---|", *rows]))
    if command.epilog:
        parts.append(_plain(command.epilog))
    for key in sorted(inner or {}):
        parts += _command(inner[key], key, words)
    return parts


def _table(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    """Return help text without Rich's markup; examples become code."""
    parts = re.split(r"\[bold\](.*?)\[/bold\]", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"([\[\]])", r"\\\1", piece) for piece in parts[::2]]
    parts[1::2] = [f"`{' '.join(piece.split())}`" for piece in parts[1::2]]
    text = "".join(parts)
    return re.sub(r"(?<!`)<([^>`]+)>(?!`)", r"&lt;\1&gt;", text)


def notebook_page(path: Path) -> str:
    """Return a notebook as a page; its code is shown, and run by the tests."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"
