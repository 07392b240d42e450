"""A gate where things leave the house: claims that a run must have made of a cut, by verdict.

`--require compactness=supported` asks for every claim of a study that is about the mask; `--require
"compactness: the smallest=supported"` for those whose words hold these. What the run's own
configuration names under `require` is asked for too, until `--require none` waives it.

A run keeps more masks than its claims are about: other fractions, rankings of benign behaviours,
models and seeds of their own, controls. `cuts.json` of the run says which are meant
(`resect.report.traced`), and no requirement lets another one through.

A mask that a run made says what the run requires (`OF_RUN`), so that it is bound without `--run`.
The folder of the run is looked for beside the mask and where the command runs (`find_run`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from resect.errors import InputError, MismatchError
from resect.files.origin import hash_value
from resect.files.reading import MOST_YAML, read_text, read_yaml
from resect.report.results import read_results
from resect.report.traced import TracedMask, read_traces
from resect.weights.mask import OF_RUN, Mask

VERDICTS = ("supported", "not supported", "inconclusive", "not measurable")
NONE = "none"
CHOSEN = "chosen"
CONFIG = "config.yaml"
# Folders in one that are looked into for the run of a mask.
MOST_FOLDERS = 1000


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


class Origin(NamedTuple):
    """The run that made a mask, as far as it is known.

    Attributes:
        run: Its folder; None where it is not known.
        required: What the mask says that the run requires.
        unknown: What cannot be known of that, "" if nothing is missing.
    """

    run: Path | None
    required: tuple[Wanted, ...] = ()
    unknown: str = ""


@dataclass(frozen=True)
class Gate:
    """What a cut had to show before it was written.

    Attributes:
        required: What was asked for and held.
        met: The claims that were asked for.
        others: Claims of the same run that nothing was asked of.
        waived: What the run's configuration asks for and the user did not.
        run: The folder of that run.
        unknown: What cannot be known of requirements, "" if nothing is missing.
    """

    required: tuple[Wanted, ...] = ()
    met: tuple[Stated, ...] = ()
    others: tuple[Stated, ...] = ()
    waived: tuple[Wanted, ...] = ()
    run: Path | None = None
    unknown: str = ""

    def facts(self) -> dict[str, object]:
        """Return it for metadata; nothing if nothing was asked for."""
        listed = {"required": self.required, "waived": self.waived}
        facts = {name: list(map(str, wanted)) for name, wanted in listed.items() if wanted}
        return {**facts, **({"unknown": self.unknown} if self.unknown else {})}

    def counted(self) -> Mapping[str, int]:
        """Return how many of the other claims have which verdict, the most frequent first."""
        return dict(Counter(claim.verdict for claim in self.others).most_common())


def pass_gate(
    mask: Mask,
    run: Path | None,
    require: Sequence[str] = (),
    *,
    source: str | Path | None = None,
    alpha: float = 0.0,
) -> Gate:
    """Return what was required of a mask, or refuse to let it out.

    Args:
        mask: What is to be exported.
        run: Folder of the run that measured it; None looks for the one that the mask names, and
            leaves it out where nothing is required.
        require: Requirements as `CLAIM=VERDICT`; "none" alone waives the configuration's.
        source: The mask's file, beside which the run is looked for.
        alpha: Factor of the masked weights; runs measure a cut, which is 0.

    Raises:
        InputError: A requirement is not readable, names no claim, or a claim has another verdict or
            is about other masks.
        MismatchError: The run did not measure this mask.
    """
    asked = [text for text in require if text != NONE]
    if len(asked) < len(require) and asked:
        raise InputError(
            "--require none stands with other requirements",
            got=", ".join(require),
            fix="give either",
        )
    origin = Origin(run) if run is not None else find_run(mask, source)
    default = origin.required if origin.run is None else _of_config(origin.run)
    waived = default if require and not asked else ()
    wanted = tuple(dict.fromkeys((*map(parse_wanted, asked), *(() if waived else default))))
    if run is None and any(want.claim != CHOSEN for want in wanted):
        run = origin.run
    if wanted:
        _refuse_control(mask)
        _refuse_factor(alpha)
    stated = _stated(mask, run, wanted)
    met = tuple(dict.fromkeys(claim for want in wanted for claim in _met(want, stated)))
    others = tuple(claim for claim in stated.claims if claim not in met)
    return Gate(wanted, met, others, waived, run, origin.unknown)


def gate_of(mask: Mask, run: Path | Gate | None, alpha: float = 0.0) -> Gate:
    """Return the gate that a mask has passed, or let it pass that of a run's configuration.

    Raises:
        InputError: As in `pass_gate`.
        MismatchError: As in `pass_gate`.
    """
    return run if isinstance(run, Gate) else pass_gate(mask, run, alpha=alpha)


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


def find_run(mask: Mask, source: str | Path | None) -> Origin:
    """Return the run that made a mask, by what the mask and the folders around it say.

    A folder is that of the run if its configuration is the one that the mask names, by its hash:
    the folders around the mask's file are tried, the working directory, and what lies in them. A
    mask of an earlier version names none, and is known by the folder that it lies in.

    Args:
        mask: The mask.
        source: Its file, or what else it was loaded from.

    Raises:
        InputError: A configuration cannot be read, or the mask's own word cannot.
    """
    named = _named(mask.meta)
    folder = _folder_of(source)
    if not named.config:
        near = () if folder is None else (folder.parent,) if folder.name == "masks" else (folder,)
        runs = (run for run in near if (run / CONFIG).is_file() and _measured(mask, run))
        return Origin(next(runs, None), named.required)
    for run in _around(folder):
        if _hash_of_config(run) == named.config:
            return Origin(run, named.required)
    if named.whole:
        return Origin(None, named.required)
    unknown = (
        f"the mask is of a run with the configuration {named.config}, and no folder here is that "
        "run's: whether it requires a verdict is not known"
    )
    return Origin(None, (), unknown)


def _folder_of(source: str | Path | None) -> Path | None:
    """Return the folder that a mask lies in, None if it came from elsewhere."""
    path = Path(source or "nowhere").expanduser().absolute()
    return path.parent if path.is_file() else path if source and path.is_dir() else None


class _Named(NamedTuple):
    """The run that a mask names.

    Attributes:
        config: The hash of its configuration, "" if none is named.
        required: What it requires.
        whole: Whether the mask says what it requires; masks of earlier versions do not.
    """

    config: str = ""
    required: tuple[Wanted, ...] = ()
    whole: bool = False


def _named(meta: Mapping[str, object]) -> _Named:
    """Return what the origin of a mask says of its run; masks made of others require the same."""
    of_run, measured = meta.get(OF_RUN), meta.get("measured")
    if isinstance(of_run, Mapping):
        required = of_run.get("require")
        return _Named(str(of_run.get("config", "")), _listed(required), whole=True)
    if isinstance(measured, Mapping) and "config" in measured:
        return _Named(str(measured["config"]))
    parents = meta.get("parents")
    metas = [parent.get("meta") for parent in parents] if isinstance(parents, list) else []
    required_of = [_named(inner).required for inner in metas if isinstance(inner, Mapping)]
    return _Named("", tuple(dict.fromkeys(want for wanted in required_of for want in wanted)))


def _around(folder: Path | None) -> Iterator[Path]:
    """Yield folders that may be a run's: around a file, then where the command runs."""
    seen: set[Path] = set()
    roots = [Path.cwd()] if folder is None else [folder, folder.parent, Path.cwd()]
    for root in roots:
        inner: list[Path] = []
        with contextlib.suppress(OSError):
            inner = sorted(path for path in root.iterdir() if path.is_dir())[:MOST_FOLDERS]
        for path in (root, *inner):
            if path not in seen and (path / CONFIG).is_file():
                yield path
            seen.add(path)


def _hash_of_config(run: Path) -> str:
    """Return what names the configuration of a run folder, "" if it cannot be read."""
    try:
        return hash_value(_config(run))
    except InputError:
        return ""


def _config(run: Path) -> object:
    path = run / CONFIG
    try:
        return read_yaml(read_text(path, limit=MOST_YAML), path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=str(error)) from error


def _of_config(run: Path) -> tuple[Wanted, ...]:
    """Return what the configuration of a run requires of its cuts."""
    config = _config(run) if (run / CONFIG).is_file() else None
    return _listed(config.get("require") if isinstance(config, Mapping) else None)


def _listed(named: object) -> tuple[Wanted, ...]:
    """Return requirements from a mapping of claims to verdicts."""
    if not isinstance(named, Mapping):
        return ()
    return tuple(parse_wanted(f"{claim}={verdict}") for claim, verdict in named.items())


@dataclass(frozen=True)
class _Statements:
    """What is said of a mask.

    Attributes:
        source: Who says it, for messages.
        claims: The claims.
        about: The files of the masks that each claim of a run is about.
        alone: What each seed says by itself of a claim of a run.
        traced: Masks of the run by file name.
        files: The names under which the run keeps the mask.
    """

    source: str
    claims: tuple[Stated, ...]
    about: Mapping[Stated, tuple[str, ...]] = field(default_factory=dict)
    alone: Mapping[Stated, Mapping[str, str]] = field(default_factory=dict)
    traced: Mapping[str, TracedMask] = field(default_factory=dict)
    files: frozenset[str] = frozenset()

    def concerns(self, claim: Stated) -> bool:
        """Tell whether a claim is about the mask."""
        return claim.study == CHOSEN or not self.files.isdisjoint(self.about.get(claim, ()))

    def concerns_none(self, claim: Stated) -> bool:
        """Tell whether a claim is about models as they are, and no mask."""
        return claim.study != CHOSEN and not self.about.get(claim)

    def dissents(self, claim: Stated, verdict: str) -> str:
        """Return which seed of the mask denies by itself what is claimed over all, "" if none."""
        if verdict != "supported":
            return ""
        seeds = [self.traced[name].seed for name in sorted(self.files) if name in self.traced]
        verdicts = self.alone.get(claim, {})
        against = [seed for seed in seeds if verdicts.get(str(seed)) == "not supported"]
        return f"seed {against[0]} alone" if against else ""

    def described(self, names: Iterable[str]) -> str:
        """Return masks in words."""
        return "; ".join(str(self.traced.get(name, name)) for name in names) or "no mask"

    def described_about(self, claims: Iterable[Stated]) -> str:
        """Return in words the masks that claims are about."""
        names = (name for claim in claims for name in self.about.get(claim, ()))
        return self.described(dict.fromkeys(names))


def _stated(mask: Mask, run: Path | None, wanted: Sequence[Wanted]) -> _Statements:
    """Return the claims of a run, with the one that the mask's file holds if that is wanted.

    Raises:
        InputError: Something is required, and neither is there.
        MismatchError: The run did not measure this mask.
    """
    measured = mask.meta.get("measured")
    chosen: tuple[Stated, ...] = ()
    # The origin of a mask may have been copied to another one.
    if isinstance(measured, Mapping) and measured.get("mask", mask.hash) == mask.hash:
        chosen = (Stated(CHOSEN, "the cut that its run chose", str(measured.get("verdict"))),)
    if run is not None:
        return _of_run(mask, run, chosen, wanted)
    if wanted and not chosen:
        raise InputError(
            f"{wanted[0]} is required, and nothing says what was measured with this mask",
            got="no --run, no folder of its run beside it or here, and no measurement in its file",
            allowed="the folder of the run that measured it",
            fix="name it with --run DIR, or waive what its own run requires with --require none",
        )
    return _Statements("the mask's file", chosen)


def _of_run(
    mask: Mask, run: Path, chosen: tuple[Stated, ...], wanted: Sequence[Wanted]
) -> _Statements:
    """Return the claims of a run; which masks they are about is read if something is wanted."""
    names = refuse_another_run(mask, run)
    results = read_results(run).claims
    claims = {Stated(claim.study, claim.claim, claim.verdict): claim for claim in results}
    if any(want.claim == CHOSEN for want in wanted):
        statements = (*claims, *chosen)
    else:
        statements = tuple(claims)
    if not wanted:
        return _Statements(str(run), statements, files=names)
    traces = read_traces(run)
    about = {stated: traces.about(stated.study, stated.claim) for stated in claims}
    alone = {stated: claim.by_seed for stated, claim in claims.items()}
    return _Statements(str(run), statements, about, alone, traces.described(), names)


def _refuse_factor(alpha: float) -> None:
    """Refuse to let weights through that are not cut.

    Raises:
        InputError: The factor is not 0.
    """
    if alpha:
        raise InputError(
            "the claims of a run are about weights that are cut",
            got=f"--alpha {alpha:g}",
            allowed="0",
            fix="leave --alpha out, or give --require none",
        )


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


def _met(want: Wanted, stated: _Statements) -> list[Stated]:
    """Return the claims that a requirement names and that are about the mask, or about no mask.

    Raises:
        InputError: There is none, none is about the mask, or one has another verdict.
    """
    source = stated.source
    named = [claim for claim in stated.claims if _is_named(want.claim, claim)]
    if not named:
        listed = "; ".join(f"{claim.study}: {claim.claim}" for claim in stated.claims)
        raise InputError(
            f"{want} is required, and {source} makes no such claim",
            got=listed or "no claim at all",
            fix="name a study or words of one of its claims, or run the study that makes it",
        )
    if not any(map(stated.concerns, named)):
        raise InputError(
            f"{want} is required, and what {source} claims there is not about this mask",
            got=stated.described(sorted(stated.files)),
            allowed=stated.described_about(named),
            fix="give a mask that the claim is about, or --require none",
        )
    claims = [c for c in named if stated.concerns(c) or stated.concerns_none(c)]
    failed = [f"{c.study}: {c.claim}: {c.verdict}" for c in claims if c.verdict != want.verdict]
    failed = failed or [
        f"{c.study}: {c.claim}: not supported by {seed}, whose mask this is"
        for c in claims
        if (seed := stated.dissents(c, want.verdict))
    ]
    if failed:
        raise InputError(
            f"{want} is required, and {source} says otherwise",
            got="; ".join(failed),
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


def refuse_another_run(mask: Mask, run: Path) -> frozenset[str]:
    """Return the names under which a run keeps a mask, and refuse one that it did not measure.

    Raises:
        MismatchError: The mask is none of those.
    """
    paths = _masks_of(run)
    names = frozenset(path.name for path in paths if Mask.load(path).hash == mask.hash)
    if not names:
        raise MismatchError(
            f"{run} did not measure this mask",
            got=f"mask {mask.hash}",
            allowed=f"one of the {len(paths)} masks in {run / 'masks'}",
            fix="name the run that measured it, or leave --run out",
        )
    return names


def _masks_of(run: Path) -> list[Path]:
    return sorted((run / "masks").glob("*.mask.safetensors"))


def _measured(mask: Mask, run: Path) -> bool:
    return any(Mask.load(path).hash == mask.hash for path in _masks_of(run))
