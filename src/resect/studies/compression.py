"""Do aligned models compress harmful generation more, and is alignment the cause?

The same curve on the base model, the aligned model and a control that was fine-tuned as long on
benign data without any refusal, compared at an equal utility budget. Random cuts of the same size
show how fragile each model is to any cut. The whole can be done with a second way to rank, since a
part of the difference may be the method's and not the models'.

Separation index of a model and a method, two numbers:
    drop at budget    the largest relative drop of harm among cuts whose utility drop is within the
                      budget, the choice repeated in every bootstrap draw; each seed is a model
                      and chooses its own, and the mean over seeds is shown
    fraction needed   the smallest fraction q at which harm has dropped by half, on the line through
                      the grid's points over log q; none if no point of the grid reaches it
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from resect.records import Claim, Interval, StudyResult, VerdictWord
from resect.stats import Sample
from resect.studies.cells import Cell, Cut
from resect.studies.design import Compression, RunConfig
from resect.studies.effects import (
    Effect,
    best_cuts,
    cells_of,
    columns,
    curve_rows,
    effect,
    effect_probes,
    seed_groups,
)
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Study
from resect.studies.weighing import percent

DIFFERENCE = "Harm is more compressed in the aligned model than in the base model."
CAUSE = "Alignment, and not fine-tuning as such, compresses it."
SECOND = "The same holds when the weights are ranked in another way: "


@dataclass(frozen=True)
class _Way:
    """A way to rank with its grid."""

    name: str
    target: str
    rounds: int
    fractions: tuple[float, ...]

    def cuts(self, kind: str) -> list[Cut]:
        """Return the target's grid, or random cuts of the same sizes."""
        chosen = "random" if kind == "random" else "target"
        return [
            Cut(self.target, "random" if chosen == "random" else "target", q, rounds=self.rounds)
            for q in self.fractions
        ]


def _section(config: RunConfig) -> Compression:
    return config.studies.compression or Compression()


def _roles(config: RunConfig) -> list[str]:
    section = _section(config)
    pairs = [role for pair in section.pairs for role in pair]
    roles = (section.aligned, section.base, section.control, *section.others, *pairs)
    return list(dict.fromkeys(role for role in roles if role is not None))


def _ways(config: RunConfig) -> list[_Way]:
    section = _section(config)
    ways = [_Way("configured", config.target, 1, section.fractions)]
    if section.second is not None:
        second = section.second
        ways.append(_Way(second.name, second.target, second.rounds, section.second_fractions))
    return ways


def plan(config: RunConfig) -> list[Cell]:
    """Return each way's grid and the random grid for every model."""
    probes = effect_probes(config)
    ways = _ways(config)
    cuts: list[Cut | None] = [None, *ways[0].cuts("random")]
    cuts += [cut for way in ways for cut in way.cuts("target")]
    return [
        cell
        for role in _roles(config)
        for cut in cuts
        for cell in cells_of(config, role, cut, probes)
    ]


def _at_budget(
    measured: Measurements, role: str, cuts: list[Cut], seeds: tuple[int, ...]
) -> Sample:
    budget = _section(measured.config).utility_drop
    return best_cuts(measured, role, cuts, seeds, budget)[0]


def needed(points: list[tuple[float, float]], drop: float) -> float | None:
    """Return the smallest q at which the line through (log q, drop of harm) reaches `drop`.

    Args:
        points: (q, relative drop of harm), q rising.
        drop: What is to be reached.
    """
    before: tuple[float, float] | None = None
    for q, value in points:
        if value >= drop:
            if before is None or value == before[1]:
                return q
            part = (drop - before[1]) / (value - before[1])
            return math.exp(math.log(before[0]) + part * (math.log(q) - math.log(before[0])))
        before = (q, value)
    return None


def _index_rows(measured: Measurements) -> list[Row]:
    config = measured.config
    section = _section(config)
    rows: list[Row] = []
    for role in _roles(config):
        for way in _ways(config):
            for seed, seeds in seed_groups(config):
                cuts = way.cuts("target")
                effects: list[Effect] = [effect(measured, role, cut, seeds) for cut in cuts]
                points = [(c.q, e.harm_drop.value) for c, e in zip(cuts, effects, strict=True)]
                best = _at_budget(measured, role, cuts, seeds)
                rows.append(
                    {
                        "seed": seed,
                        "role": role,
                        "method": way.name,
                        **columns("drop_at_budget", best),
                        "fraction_needed": needed(points, section.needed_drop),
                    }
                )
    return rows


def _arms(config: RunConfig) -> list[tuple[str, Cut | None]]:
    ways = _ways(config)
    arms: list[tuple[str, Cut | None]] = [("intact", None)]
    arms += [("target", cut) for cut in ways[0].cuts("target")]
    arms += [("random", cut) for cut in ways[0].cuts("random")]
    return arms + [(way.name, cut) for way in ways[1:] for cut in way.cuts("target")]


def summarise(measured: Measurements) -> StudyResult:
    """Compare the models at the utility budget, pair by pair."""
    config = measured.config
    section = _section(config)
    ways = _ways(config)
    curve = [
        {"model": role, **row}
        for role in _roles(config)
        for row in curve_rows(measured, role, _arms(config))
    ]
    claims = [
        _claim(measured, DIFFERENCE, (section.aligned, section.base), ways[0]),
        _claim(measured, CAUSE, (section.aligned, section.control), ways[0]),
    ]
    if len(ways) > 1:
        text = f"{SECOND}{ways[1].name}."
        claims.append(_claim(measured, text, (section.aligned, section.base), ways[1]))
    return StudyResult(
        study="compression",
        title=STUDY.question,
        claims=tuple(claims),
        tables={
            "index": _index_rows(measured),
            "pairs": _pair_rows(measured),
            "curve": curve,
        },
        shows=(
            "Whether a cut of the same utility cost removes more harm from the aligned model than "
            "from the base model, and than from a model that was fine-tuned without refusals."
        ),
        does_not_show=(
            "Why: a model in which harm is a rarely trained mode is easier to tip over by any "
            "cut, which the random cuts show. Where only some of the checkpoints were given, "
            "preference training or rehearsal can change the picture."
        ),
        settings=section.model_dump(mode="json"),
    )


def _pair_rows(measured: Measurements) -> list[Row]:
    """Return the difference of each (aligned, base) pair, by way."""
    config = measured.config
    section = _section(config)
    rows: list[Row] = []
    for aligned, base in ((section.aligned, section.base), *section.pairs):
        for way in _ways(config):
            for seed, seeds in seed_groups(config):
                cuts = way.cuts("target")
                first = _at_budget(measured, aligned, cuts, seeds)
                second = _at_budget(measured, base, cuts, seeds)
                rows.append(
                    {
                        "seed": seed,
                        "aligned": aligned,
                        "base": base,
                        "method": way.name,
                        **columns("difference", first - second),
                    }
                )
    return rows


def _claim(measured: Measurements, text: str, pair: tuple[str, str | None], way: _Way) -> Claim:
    config = measured.config
    section = _section(config)
    role, other = pair
    aligned = _at_budget(measured, role, way.cuts("target"), config.seeds)
    randoms = _ways(config)[0].cuts("random")
    random = _at_budget(measured, role, randoms, config.seeds)
    controls = [random.interval(f"random cut, {role}")]
    verdict: VerdictWord
    if other is None:
        verdict, reason = "not measurable", "No control checkpoint was given."
        difference = Interval("difference of the drops within the budget", None)
    else:
        rival = _at_budget(measured, other, way.cuts("target"), config.seeds)
        difference = (aligned - rival).interval(f"{role} minus {other}: drop within the budget")
        controls += [
            aligned.interval(f"target cut, {role}"),
            rival.interval(f"target cut, {other}"),
            _at_budget(measured, other, randoms, config.seeds).interval(f"random cut, {other}"),
        ]
        verdict, reason = _weigh(measured, (role, other), difference)
        if verdict in ("supported", "inconclusive") and aligned.value < section.needed_drop:
            verdict = "not supported"
            reason = f"Within the budget {role} loses only {percent(aligned.value)} of its harm."
        if verdict == "not measurable":
            difference = Interval(difference.name, None)
    return Claim(
        study="compression",
        claim=text,
        verdict=verdict,
        effect=difference,
        controls=tuple(controls),
        rule=(
            f"At a relative utility drop of at most {percent(section.utility_drop)}, the best cut "
            f"({way.name} ranking) lowers harm more in {role} than in {other or 'a control'} "
            "(lower bound of the paired difference above 0), and by at least "
            f"{percent(section.needed_drop)} in {role}."
        ),
        seeds=config.seeds,
        n=measured.prompts(cells_of(config, role, None, ()), "generation"),
        reason=reason,
    )


def _weigh(
    measured: Measurements, pair: tuple[str, str], difference: Interval
) -> tuple[VerdictWord, str]:
    config = measured.config
    silent = [
        f"{role}: {why}"
        for role in pair
        if (why := measured.silent(cells_of(config, role, None, ()), "generation"))
    ]
    if silent:
        return "not measurable", " ".join(silent)
    if difference.low is not None and difference.low > 0:
        return "supported", f"{pair[0]} loses more harm than {pair[1]}."
    if difference.value is not None and difference.value > 0:
        return "inconclusive", "The interval of the difference reaches 0."
    return "not supported", f"{pair[0]} does not lose more harm than {pair[1]} at this budget."


STUDY = Study(
    "compression",
    "Do aligned models compress harmful generation more, and is alignment the cause?",
    plan,
    summarise,
)
