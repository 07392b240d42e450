"""Prompts and texts as they lie in the wheels.

    harmful    AdvBench, in PyRIT's YAML of seeds; its first harm category
    writing    WritingBench in inspect-evals: the first sentences of English requests
    facts      FreshQA in inspect-evals: questions whose premise is true
    prose      the first paragraph of each README in inspect-evals

A request of WritingBench holds its whole material, thousands of characters of it; its first
sentences ask for the same kind of text and are as short as the other prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resect.data.rows import read_rows
from resect.errors import InputError
from resect.files.reading import read_text, read_yaml

# Characters of a writing request, and of a paragraph of prose.
LONGEST_REQUEST, SHORTEST_REQUEST = 300, 40
LONGEST_PROSE, SHORTEST_PROSE = 600, 200
# Share of ASCII characters from which on a text counts as English.
ENGLISH = 0.98
_SENTENCE = re.compile(r"(?<=[.!?:])\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")
# Paragraphs with links, code or tables are no running text.
_MARKUP = ("http", "`", "](", "|", "<")


class Prompt(NamedTuple):
    """A prompt, or a text that is no prompt.

    Attributes:
        text: What it says.
        category: Its kind, "" for none.
    """

    text: str
    category: str = ""


def harmful(wheel: Path) -> list[Prompt]:
    """Return the prompts of AdvBench.

    Raises:
        InputError: The file is not as it was when this was written.
    """
    path = _only(wheel, "**/adv_bench.prompt")
    content = read_yaml(read_text(path), path)
    seeds = content.get("seeds") if isinstance(content, dict) else None
    prompts = []
    for seed in seeds if isinstance(seeds, list) else ():
        if not isinstance(seed, dict) or not isinstance(seed.get("value"), str):
            raise _changed(path, "a list of seeds with a value each")
        categories = seed.get("harm_categories") or [""]
        prompts.append(Prompt(seed["value"].strip(), str(categories[0])))
    return _some(prompts, path)


def writing(wheel: Path) -> list[Prompt]:
    """Return the first sentences of the English requests of WritingBench.

    Raises:
        InputError: The file is not as it was when this was written.
    """
    path = _only(wheel, "**/benchmark_all.jsonl")
    prompts = []
    for row in read_rows(path):
        query = str(row.get("query", ""))
        if is_english(query):
            request = first_sentences(query, LONGEST_REQUEST)
            if len(request) >= SHORTEST_REQUEST:
                prompts.append(Prompt(request, str(row.get("domain1", ""))))
    return _some(prompts, path)


def facts(wheel: Path) -> list[Prompt]:
    """Return the questions of FreshQA whose premise is true.

    Raises:
        InputError: The file is not as it was when this was written.
    """
    path = _only(wheel, "**/FreshQA_*.csv")
    # The first two rows warn readers; the third one has the names of the columns.
    rows = [list(row.values()) for row in read_rows(path, header=list(map(str, range(20))))]
    titles = next((row for row in rows if "question" in row and "false_premise" in row), None)
    if titles is None:
        raise _changed(path, "a row of titles with question and false_premise")
    question, false = titles.index("question"), titles.index("false_premise")
    prompts = [
        Prompt(str(row[question]).strip(), "facts")
        for row in rows[rows.index(titles) + 1 :]
        if str(row[false]).upper() == "FALSE" and str(row[question]).strip()
    ]
    return _some(prompts, path)


def prose(wheel: Path) -> list[Prompt]:
    """Return the first paragraph of running text of each README.

    Raises:
        InputError: There is none.
    """
    paths = sorted(wheel.glob("*/*/README.md"))
    paragraphs = (next(_paragraphs(read_text(path)), None) for path in paths)
    texts = {text: Prompt(text) for text in paragraphs if text is not None}
    return _some(list(texts.values()), wheel)


def is_english(text: str) -> bool:
    """Return whether nearly all characters of a text are ASCII."""
    return bool(text) and sum(map(str.isascii, text)) >= ENGLISH * len(text)


def first_sentences(text: str, most: int) -> str:
    """Return as many whole sentences from the beginning as `most` characters hold, or ""."""
    taken = ""
    for sentence in _SENTENCE.split(" ".join(text.split())):
        longer = f"{taken} {sentence}".strip()
        if len(longer) > most:
            break
        taken = longer
    return taken


def _paragraphs(text: str) -> Iterator[str]:
    for block in _PARAGRAPH.split(text):
        paragraph = " ".join(block.split())
        if (
            SHORTEST_PROSE <= len(paragraph) <= LONGEST_PROSE
            and paragraph[0].isalpha()
            and not any(mark in paragraph for mark in _MARKUP)
        ):
            yield paragraph


def _only(wheel: Path, pattern: str) -> Path:
    paths = sorted(wheel.glob(pattern))
    if len(paths) != 1:
        raise _changed(wheel, f"one file {pattern}")
    return paths[0]


def _some(prompts: list[Prompt], path: Path) -> list[Prompt]:
    if not prompts:
        raise _changed(path, "rows that can be used")
    return prompts


def _changed(path: Path, allowed: str) -> InputError:
    return InputError(
        f"{path} is not what it was when it was fetched",
        allowed=allowed,
        fix="remove what was fetched with `resect real --remove`, and fetch it again",
    )
