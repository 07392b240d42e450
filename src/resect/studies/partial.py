"""The records of a run whose cuts were not asked everything (`evaluation.search: halving`).

What was asked of a half is a record of its own. A cut has a rate only on prompts of which all were
asked, and there is none over several variants of which one was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from resect.studies.cells import Cell, is_done
from resect.studies.design import Design
from resect.studies.halves import Half, Place, PromptOf
from resect.studies.judged import JudgeError
from resect.studies.measurements import Measurements, Row, prompt_of

HALVES: tuple[Half, ...] = ("selection", "test")


class _Dealt(NamedTuple):
    """The prompts of a probe that an intact model was asked."""

    intact: Cell
    probe: str


class Partial(Measurements):
    """Measurements of a run whose grid was searched; see `Measurements`."""

    def __init__(self, config: Design, run: Path, error: JudgeError | None = None):
        """Open a run; files are read when they are asked for."""
        super().__init__(config, run, error)
        self._places: dict[_Dealt, dict[PromptOf, Place]] = {}

    def rows(self, cell: Cell) -> list[Row]:
        """Return the rows that a variant has, in the order of its examples; none if there are none.

        Raises:
            InputError: The intact model is not recorded yet.
        """
        if not self._is_partial(cell):
            return super().rows(cell)
        rows = [row for portion in self._parts(cell) for row in super(Partial, self).rows(portion)]
        return sorted(rows, key=lambda row: (row["probe"], row["example_id"]))

    def covers(self, cells: Iterable[Cell], probe: str, half: Half = "") -> bool:
        """Return whether all variants were asked a probe on a half of its prompts, or on both."""
        halves = (half,) if half else HALVES
        return all(
            is_done(self.run, cell.part(probe, name))
            for cell in (replace(cell, half="") for cell in cells)
            if self._is_partial(cell)
            for name in halves
        )

    def _is_partial(self, cell: Cell) -> bool:
        """Return whether a variant may have been asked a part; the intact model never is."""
        return cell.cut is not None and not cell.half and not is_done(self.run, cell)

    def _parts(self, cell: Cell) -> Iterator[Cell]:
        """Yield what a variant was asked by now."""
        for probe in self.config.evaluation.probes:
            for half in HALVES:
                portion = cell.part(probe, half)
                if is_done(self.run, portion):
                    yield portion

    def _state_of(self, cell: Cell) -> str:
        if not self._is_partial(cell):
            return super()._state_of(cell)
        return "/".join((cell.key, *(portion.key for portion in self._parts(cell))))

    def _dealt(self, cell: Cell, rows: Sequence[Row]) -> list[Place]:
        """Return where the prompts of rows stand among all that the intact model was asked."""
        if not rows or not self._is_partial(cell):
            return super()._dealt(cell, rows)
        key = _Dealt(replace(cell, cut=None, tuning=None, probes=()), rows[0]["probe"])
        if key not in self._places:
            intact = [row for row in self.rows(key.intact) if row["probe"] == key.probe]
            places = super()._dealt(key.intact, intact)
            self._places[key] = dict(zip(map(prompt_of, intact), places, strict=True))
        return [self._places[key][prompt_of(row)] for row in rows]


def measurements_of(config: Design, run: Path, error: JudgeError | None = None) -> Measurements:
    """Open a run as its configuration says that it was asked; see `Measurements`."""
    family = Partial if config.evaluation.search == "halving" else Measurements
    return family(config, run, error)
