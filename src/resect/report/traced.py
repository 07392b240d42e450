"""Which masks of a run its claims are about: `cuts.json`, written beside `results.json`.

A run keeps more masks than its claims are about: other fractions, rankings of other behaviours,
controls. Whoever exports one must know which it is (`resect.export.gate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resect.errors import InputError
from resect.files.reading import read_as
from resect.files.writing import write_json
from resect.records import StudyResult

NAME = "cuts.json"
FIX = "write it with `resect study run {run}/config.yaml -o {run} --resume`; nothing is measured"


@dataclass(frozen=True)
class TracedMask:
    """What a mask of a run was made for.

    Attributes:
        file: Its name in the folder `masks`.
        role: Role of the model that it is cut from.
        seed: Seed of that model and of its calibration draw.
        cut: What it is, in words.
    """

    file: str
    role: str
    seed: int
    cut: str

    def __str__(self) -> str:
        """Say it in a message."""
        return f"{self.cut}, seed {self.seed} of {self.role}"


@dataclass(frozen=True)
class TracedClaim:
    """A claim and the file names of the masks that it is about."""

    study: str
    claim: str
    masks: tuple[str, ...]


@dataclass(frozen=True)
class Traces:
    """What `cuts.json` holds."""

    claims: tuple[TracedClaim, ...]
    masks: tuple[TracedMask, ...]

    def about(self, study: str, claim: str) -> tuple[str, ...]:
        """Return the file names of the masks that a claim of the run is about."""
        of_study = (traced for traced in self.claims if traced.study == study)
        return next((traced.masks for traced in of_study if traced.claim == claim), ())

    def described(self) -> Mapping[str, TracedMask]:
        """Return the masks by the names of their files."""
        return {mask.file: mask for mask in self.masks}


def write_traces(
    run: Path, results: Iterable[StudyResult], masks: Sequence[TracedMask]
) -> list[StudyResult]:
    """Write `cuts.json`, and return the results without what it says.

    So `results.json` is the same as before there were traces.

    Args:
        run: The folder of the run.
        results: What its studies say.
        masks: The masks that it makes.
    """
    results = list(results)
    claims = [
        TracedClaim(claim.study, claim.claim, claim.about)
        for result in results
        for claim in result.claims
    ]
    write_json(run / NAME, Traces(tuple(claims), tuple(masks)))
    return [
        replace(result, claims=tuple(replace(claim, about=()) for claim in result.claims))
        for result in results
    ]


def read_traces(run: Path) -> Traces:
    """Read `cuts.json` of a run.

    Raises:
        InputError: There is none, as in runs of earlier versions, or it is not whole.
    """
    path = run / NAME
    if not path.is_file():
        raise InputError(
            f"{run} does not say which of its masks its claims are about",
            got=f"no {NAME}, as in runs of earlier versions",
            fix=FIX.format(run=run),
        )
    return read_as(path, Traces, "trace of masks", fix=FIX.format(run=run))
