"""Differences between evaluations, with their intervals, from stored records; needs no torch.

An arm is what one variant of a model answered: an evaluation has one, or two with a mask. Arms are
compared with the first one, and cut ones with their own intact one as well, probe by probe and
judge by judge:

    rate             mean over prompts of the mean score of a prompt's scored replies
    nats a token     of the likelihood probe: mean NLL of the references
    difference       of an arm minus the first one

Where both arms were asked the same prompts, the same prompts are drawn for both (paired); other
sets are drawn apart from each other. Rows of one prompt are drawn together; a text without a prompt
stands for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from resect import files
from resect.errors import InputError
from resect.evaluation.probes import PROBES
from resect.files.reading import refuse_links_out
from resect.stats import Resampler, cluster_means, normalised

SETS = "sets.json"
VARIANTS = ("intact", "cut")


@dataclass(frozen=True)
class Arm:
    """What one variant of a model answered.

    Attributes:
        name: For tables.
        rows: Its judged records.
        request: The options that it was asked with.
    """

    name: str
    rows: Sequence[Mapping[str, object]]
    request: Mapping[str, object]


class Difference(TypedDict):
    """How far an arm differs from the first one; None is not measured."""

    probe: str
    attack: str
    judge: str
    unit: str
    arm: str
    against: str
    value: float | None
    value_against: float | None
    difference: float | None
    low: float | None
    high: float | None
    prompts: int
    prompts_against: int
    paired: bool


def is_evaluation(folder: Path) -> bool:
    """Return whether a folder holds an evaluation, or evaluations of several sets."""
    return (folder / SETS).is_file() or any(
        (folder / "records" / f"{variant}.parquet").is_file() for variant in VARIANTS
    )


def arms_of(folders: Sequence[Path]) -> list[Arm]:
    """Read the arms of evaluations; those of several sets are taken one after the other.

    Raises:
        InputError: A folder holds no whole evaluation.
    """
    evaluations: list[Path] = []
    for folder in folders:
        refuse_links_out(folder)
        if (folder / SETS).is_file():
            with files.expecting(folder / SETS, "list of sets"):
                names = [str(name) for name in files.read_json(folder / SETS)["sets"]]
            evaluations += [folder / Path(name).name for name in names]
        else:
            evaluations.append(folder)
    labels = _labels(evaluations)
    return [arm for folder in evaluations for arm in _read(folder, labels[folder])]


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """Return a short name for each folder, with its parent where two have the same."""
    short = [folder.resolve().name for folder in folders]
    return {
        folder: name if short.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for folder, name in zip(folders, short, strict=True)
    }


def _read(folder: Path, label: str) -> list[Arm]:
    paths = {name: folder / "records" / f"{name}.parquet" for name in VARIANTS}
    there = {name: path for name, path in paths.items() if path.is_file()}
    if not there:
        raise InputError(f"{folder} holds no evaluation", allowed="a folder that resect eval wrote")
    with files.expecting(folder / "results.json", "result"):
        provenance = files.read_json(folder / "results.json")["provenance"]
        request = dict(provenance.get("request", {}))
    return [
        Arm(label if len(there) == 1 else f"{label}, {name}", files.read_parquet(path), request)
        for name, path in there.items()
    ]


def judge_errors_of(folders: Sequence[Path]) -> list[dict[str, object]]:
    """Return how the fitted judges of evaluations err, each once; nothing is known of others.

    Raises:
        InputError: A result cannot be read.
    """
    rows: dict[str, dict[str, object]] = {}
    for folder in folders:
        for path in sorted((*folder.glob("results.json"), *folder.glob("*/results.json"))):
            with files.expecting(path, "result"):
                for row in files.read_json(path).get("judge_errors", ()):
                    rows[f"{row['judge']}/{row['category']}"] = dict(row)
    return list(rows.values())


def differing_settings(arms: Sequence[Arm]) -> dict[str, dict[str, str]]:
    """Return the options that are not the same for all arms: option to arm to value."""
    keys = sorted({key for arm in arms for key in arm.request})
    values = {key: {arm.name: str(arm.request.get(key)) for arm in arms} for key in keys}
    return {key: of_arm for key, of_arm in values.items() if len(set(of_arm.values())) > 1}


def differences(arms: Sequence[Arm]) -> list[Difference]:
    """Compare every arm with the first one, and the cut of each set with that set's intact model.

    Raises:
        InputError: There is one arm alone, or a record lacks a column.
    """
    if len(arms) < 2:
        raise InputError(
            "there is nothing to compare with",
            got=", ".join(arm.name for arm in arms),
            allowed="two evaluations, two sets (--data twice), or two variants (--mask)",
        )
    measured = {arm.name: _measured(arm) for arm in arms}
    rows: list[Difference] = []
    for arm in arms[1:]:
        for against in dict.fromkeys((arms[0].name, _intact_of(arm.name))):
            rows += [
                _compared(key, arm.name, values, against, measured[against][key])
                for key, values in measured[arm.name].items()
                if key in measured.get(against, {})
            ]
    return rows


def _intact_of(name: str) -> str:
    """Return the name of the intact arm of a cut one; no arm's name for another."""
    return f"{name.removesuffix(', cut')}, intact" if name.endswith(", cut") else ""


@dataclass(frozen=True)
class _Key:
    """What is comparable: one probe under one attack, by one judge."""

    probe: str
    attack: str
    judge: str


def _measured(arm: Arm) -> dict[_Key, dict[str, float | None]]:
    """Return for each probe and judge the mean score of each prompt, by its text."""
    scores: dict[_Key, list[float | None]] = {}
    prompts: dict[_Key, list[str]] = {}
    for row in arm.rows:
        try:
            probe = str(row["probe"])
            likelihood = probe in PROBES and PROBES[probe].judged == "never"
            key = _Key(probe, str(row["attack"]), "" if likelihood else str(row["judge"]))
            score = row["nll"] if likelihood else row["score"]
            words = normalised(str(row["prompt"]))
            if likelihood and not words:
                words = normalised(str(row["reference"]))
        except KeyError as error:
            raise InputError(f"a record of {arm.name} lacks a column", got=str(error)) from error
        scores.setdefault(key, []).append(float(score) if isinstance(score, int | float) else None)
        # Records of earlier versions hold no texts of the probe perplexity.
        prompts.setdefault(key, []).append(words or str(row["example_id"]))
    return {
        key: dict(
            zip(dict.fromkeys(prompts[key]), cluster_means(scores[key], prompts[key]), strict=True)
        )
        for key in scores
    }


def _compared(
    key: _Key,
    name: str,
    measured: Mapping[str, float | None],
    first_name: str,
    first: Mapping[str, float | None],
) -> Difference:
    paired = measured.keys() == first.keys()
    resampler = Resampler(f"difference/{key.probe}/{key.judge}")
    # Values that have no known ends are no rates.
    take = resampler.rate if key.judge else resampler.spread
    order = sorted(first) if paired else list(measured)
    arm = take({"": [measured[prompt] for prompt in order]})
    against = take({"" if paired else "first": [first[prompt] for prompt in sorted(first)]})
    counts = [sum(score is not None for score in scores.values()) for scores in (measured, first)]
    difference = (arm - against).interval("difference")
    # One prompt says nothing about the spread between prompts.
    known = bool(key.judge) or min(counts) > 1
    return Difference(
        probe=key.probe,
        attack=key.attack,
        judge=key.judge,
        unit="rate" if key.judge else "nats a token",
        arm=name,
        against=first_name,
        value=arm.interval("").value,
        value_against=against.interval("").value,
        difference=difference.value,
        low=difference.low if known else None,
        high=difference.high if known else None,
        prompts=counts[0],
        prompts_against=counts[1],
        paired=paired,
    )
