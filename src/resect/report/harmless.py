"""How often the chosen cut of a run refuses harmless prompts; reads `harmless.json` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resect import files
from resect.records import HARMLESS_FILE, Interval
from resect.report.words import interval


@dataclass(frozen=True)
class HarmlessFile:
    """What `harmless.json` holds; `resect.runs.harmless` says how it was asked."""

    prompts: int
    judge: str
    intact: Interval
    cut: Interval
    rise: Interval


def harmless_sentence(run: Path) -> str:
    """Return how often both models refuse harmless prompts; "" if a run has not asked.

    Raises:
        InputError: A field of the file is missing or holds something else.
    """
    path = run / HARMLESS_FILE
    if not path.is_file():
        return ""
    rates = files.read_as(path, HarmlessFile, "file on harmless prompts")
    return (
        f"Of {rates.prompts} harmless prompts of the preserve set the intact model refuses "
        f"{interval(rates.intact)} and the chosen cut {interval(rates.cut)}, a rise of "
        f"{interval(rates.rise)}, by the phrases of the {rates.judge} judge; the choice does not "
        "rest on that."
    )
