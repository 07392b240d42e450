"""A gate where things leave the house: claims that a run must have made of a cut, by verdict.

`--require compactness=supported` asks for every claim of a study; `--require "compactness: the
smallest=supported"` for those whose words hold these. What the run's own configuration names under
`require` is asked for too, until `--require none` waives it. A control of a run is never what its
claims are about, so no requirement lets one through that says it is one; rankings of benign
behaviours and fractions that no claim chose do not say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from resect.errors import InputError, MismatchError
from resect.files.reading import read_text, read_yaml
from resect.report.results import read_results
from resect.weights.mask import Mask

VERDICTS = ("supported", "not supported", "inconclusive", "not measurable")
NONE = "none"
CHOSEN = "chosen"
CONFIG = "config.yaml"


class Wanted(NamedTuple):
    """A verdict that claims must have, and how the claims are named."""

    claim: str
    verdict: str

    def __str__(self) -> str:
        """Return it as it is asked for."""
        return f"{self.claim}={self.verdict}"


class Stated(NamedTuple):
    """What is said of a cut: by which study, in which words, and with which verdict."""

    study: str
    claim: str
    verdict: str


@dataclass(frozen=True)
class Gate:
    """What a cut had to show before it was written.

    Attributes:
        required: What was asked for and held.
        met: The claims that were asked for.
        others: Claims of the same run that nothing was asked of.
        waived: What the run's configuration asks for and the user did not.
        run: The folder of that run.
    """

    required: tuple[Wanted, ...] = ()
    met: tuple[Stated, ...] = ()
    others: tuple[Stated, ...] = ()
    waived: tuple[Wanted, ...] = ()
    run: Path | None = None

    def facts(self) -> dict[str, object]:
        """Return it for metadata; nothing if nothing was asked for."""
        listed = {"required": self.required, "waived": self.waived}
        return {name: list(map(str, wanted)) for name, wanted in listed.items() if wanted}

    def counted(self) -> Mapping[str, int]:
        """Return how many of the other claims have which verdict, the most frequent first."""
        return dict(Counter(claim.verdict for claim in self.others).most_common())


def pass_gate(mask: Mask, run: Path | None, require: Sequence[str] = ()) -> Gate:
    """Return what was required of a mask, or refuse to let it out.

    Args:
        mask: What is to be exported.
        run: Folder of the run that measured it; None where the mask's file says itself which
            verdict the cut has that a run chose (`chosen`).
        require: Requirements as `CLAIM=VERDICT`; "none" alone waives the configuration's.

    Raises:
        InputError: A requirement is not readable, names no claim, or a claim has another verdict.
        MismatchError: The run did not measure this mask.
    """
    asked = [text for text in require if text != NONE]
    if len(asked) < len(require) and asked:
        raise InputError(
            "--require none stands with other requirements",
            got=", ".join(require),
            fix="give either",
        )
    default = () if run is None else _of_config(run)
    waived = default if require and not asked else ()
    wanted = tuple(dict.fromkeys((*map(parse_wanted, asked), *(() if waived else default))))
    if run is not None:
        refuse_another_run(mask, run)
    stated = _stated(mask, run, wanted)
    if wanted:
        _refuse_control(mask)
    met = tuple(dict.fromkeys(claim for want in wanted for claim in _met(want, stated, run)))
    others = tuple(claim for claim in stated if claim not in met)
    return Gate(wanted, met, others, waived, run)


def gate_of(mask: Mask, run: Path | Gate | None) -> Gate:
    """Return the gate that a mask has passed, or let it pass that of a run's configuration.

    Raises:
        InputError: As in `pass_gate`.
        MismatchError: As in `pass_gate`.
    """
    return run if isinstance(run, Gate) else pass_gate(mask, run)


def parse_wanted(text: str) -> Wanted:
    """Return what `CLAIM=VERDICT` asks for.

    Raises:
        InputError: It is not of this form.
    """
    claim, equals, verdict = (word.strip() for word in text.rpartition("="))
    if not equals or not claim or verdict not in VERDICTS:
        raise InputError(
            "cannot read what is required",
            got=repr(text),
            allowed=f"CLAIM=VERDICT with a verdict of {', '.join(VERDICTS)}; or none",
            fix="for instance --require compactness=supported",
        )
    return Wanted(claim, verdict)


def _of_config(run: Path) -> tuple[Wanted, ...]:
    """Return what the configuration of a run requires of its cuts."""
    path = run / CONFIG
    if not path.is_file():
        return ()
    try:
        config = read_yaml(read_text(path), path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=str(error)) from error
    named = config.get("require") if isinstance(config, Mapping) else None
    if not isinstance(named, Mapping):
        return ()
    return tuple(parse_wanted(f"{claim}={verdict}") for claim, verdict in named.items())


def _stated(mask: Mask, run: Path | None, wanted: Iterable[Wanted]) -> list[Stated]:
    """Return the claims of a run, or the one that the mask's file holds.

    Raises:
        InputError: Something is required, and neither is there.
    """
    if run is not None:
        claims = read_results(run).claims
        return [Stated(claim.study, claim.claim, claim.verdict) for claim in claims]
    measured = mask.meta.get("measured")
    if isinstance(measured, Mapping) and "verdict" in measured:
        return [Stated(CHOSEN, "the cut that its run chose", str(measured["verdict"]))]
    for want in wanted:
        raise InputError(
            f"{want} is required, and nothing says what was measured with this mask",
            got="no --run, and no measurement in the mask's file",
            allowed="the folder of the run that measured it",
            fix="name it with --run DIR",
        )
    return []


def _refuse_control(mask: Mask) -> None:
    """Refuse a mask that its run made to compare with.

    Raises:
        InputError: It is one.
    """
    permutation = mask.meta.get("permutation")
    number = permutation.get("number") if isinstance(permutation, Mapping) else 0
    control = mask.meta.get("control") or (f"permutation {number}" if number else "")
    if control:
        raise InputError(
            "the mask is a control, and the claims of its run are not about it",
            got=str(control),
            allowed="the mask of a target",
            fix="give the mask that was selected, or --require none",
        )


def _met(want: Wanted, stated: Sequence[Stated], run: Path | None) -> list[Stated]:
    """Return the claims that a requirement names, all of which have its verdict.

    Raises:
        InputError: There is none, or one has another verdict.
    """
    source = "the mask's file" if run is None else str(run)
    claims = [claim for claim in stated if _is_named(want.claim, claim)]
    if not claims:
        raise InputError(
            f"{want} is required, and {source} makes no such claim",
            got="; ".join(f"{claim.study}: {claim.claim}" for claim in stated) or "no claim at all",
            fix="name a study or words of one of its claims, or run the study that makes it",
        )
    failed = [claim for claim in claims if claim.verdict != want.verdict]
    if failed:
        raise InputError(
            f"{want} is required, and {source} says otherwise",
            got="; ".join(f"{claim.study}: {claim.claim}: {claim.verdict}" for claim in failed),
            allowed=want.verdict,
            fix="nothing was written; --require none writes it with a card that says so first",
        )
    return claims


def _is_named(name: str, claim: Stated) -> bool:
    """Tell whether a claim is of the study of this name, or has these words."""
    if name == claim.study:
        return True
    study, colon, words = name.partition(":")
    if colon and study.strip() == claim.study:
        return words.strip().casefold() in claim.claim.casefold()
    return name.casefold() in claim.claim.casefold()


def refuse_another_run(mask: Mask, run: Path) -> None:
    """Refuse a mask that is none of those that a run measured.

    Raises:
        MismatchError: It is none of them.
    """
    paths = sorted((run / "masks").glob("*.mask.safetensors"))
    if mask.hash not in {Mask.load(path).hash for path in paths}:
        raise MismatchError(
            f"{run} did not measure this mask",
            got=f"mask {mask.hash}",
            allowed=f"one of the {len(paths)} masks in {run / 'masks'}",
            fix="name the run that measured it, or leave --run out",
        )
