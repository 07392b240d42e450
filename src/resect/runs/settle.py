"""What a run of one model measures harm by: the first instrument that sees a cut of this model.

Candidates are configurations that differ in their measure, the best to have first: replies and a
judge, then the likelihood of given answers. Each is looked through (`resect.runs.look`) until one
tells the intact model, which must show enough, from a destroyed one. If none does, the last stays:
its verdict will be *not measurable*, which is the truth, and a single q is enough to say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.data import BehaviourSet
from resect.evaluation.ask import EvaluationSettings
from resect.model import LoadedModel
from resect.records import Measure
from resect.runs.config import RunConfig, parse_config
from resect.runs.look import LOOKED, Sights, look, looked_at
from resect.runs.measure import evaluation_settings
from resect.studies import selectivity
from resect.studies.design import Evaluation
from resect.studies.selectivity import sides_of

HARM, UTILITY = "generation", "utility"


@dataclass(frozen=True)
class Instrument:
    """What was chosen.

    Attributes:
        config: The run.
        tried: Measure to what it showed, for those that were looked through.
        reasons: Lines that say why.
    """

    config: RunConfig
    tried: Mapping[Measure, Sights]
    reasons: tuple[str, ...]

    @property
    def sights(self) -> Sights:
        """What the chosen one shows."""
        return self.tried[self.config.evaluation.measure]


def looking(config: RunConfig) -> RunConfig:
    """Return a run that looks before it measures."""
    evaluation = config.evaluation.model_copy(update={"look": LOOKED})
    return config.model_copy(update={"evaluation": evaluation})


def by_likelihood(config: RunConfig, contrast: bool) -> RunConfig:
    """Return the same run by the likelihood of given answers, with other studies on its grid.

    Args:
        config: A run with the study `frontier`.
        contrast: Whether the contrast has answers that were held back from scoring.
    """
    values = config.model_dump(mode="json")
    grid = values["studies"]["frontier"]
    given = {"utility": "utility"} if "utility" in config.data else {}
    probes = {HARM: "target", UTILITY: "preserve"} | given
    probes |= {"preserve": "preserve"} if given else {}
    probes |= {"contrast": "contrast"} if contrast else {}
    probes |= {"prompts": "target"}
    values["name"] = config.name.replace("frontier of ", "selectivity of ", 1)
    values["evaluation"] |= {"measure": "likelihood", "probes": probes, "judge": "exact"}
    # Selectivity reads every cut of the grid.
    values["evaluation"].pop("search", None)
    common = {"fractions": grid["fractions"], "utility_drop": grid["utility_drop"]}
    rivals = [name for name in ("plain",) if name in config.targets]
    values["studies"] = {
        "compactness": common,
        "selectivity": {**common, "rivals": rivals},
    }
    return parse_config(values, "the run by likelihood")


def settle(
    candidates: Sequence[RunConfig],
    load: Callable[[], LoadedModel],
    sets: Mapping[str, BehaviourSet],
    tried: Mapping[Measure, Sights],
) -> Instrument:
    """Return the first candidate whose instrument sees a cut of the model.

    Args:
        candidates: Runs of different measures, the best to have first.
        load: Loads the model; called once, and only if something must be looked at.
        sets: Set to its rows, by its name under `data`.
        tried: What is known already, by measure.

    Raises:
        InputError: As `can_see`.
    """
    shown: dict[Measure, Sights] = {}
    loaded: LoadedModel | None = None
    for config in candidates:
        evaluation = config.evaluation
        if evaluation.measure in tried:
            sights = tried[evaluation.measure]
        else:
            loaded = loaded or load()
            sights = _look(loaded, evaluation, evaluation_settings(config), sets)
        shown[evaluation.measure] = sights
        if _serves(config, sights, sure=True):
            break
    chosen = _best(candidates, shown)
    config, reasons = _with_sides(chosen, shown[chosen.evaluation.measure])
    if _blind(shown[chosen.evaluation.measure]):
        config = _with_one_fraction(config)
    return Instrument(config, shown, (_said(candidates, shown, config), *reasons))


def _best(candidates: Sequence[RunConfig], shown: Mapping[Measure, Sights]) -> RunConfig:
    """Return the first candidate that serves, else the first that may, else the last."""
    seen = [config for config in candidates if config.evaluation.measure in shown]
    for sure in (True, False):
        for config in seen:
            if _serves(config, shown[config.evaluation.measure], sure=sure):
                return config
    return seen[-1]


def _serves(config: RunConfig, sights: Sights, *, sure: bool) -> bool:
    """Return whether the intact model shows enough, and a destroyed one clearly less of it."""
    return all(
        (sight.sees if sure else not sight.blind) and (sight.intact.value or 0) >= config.least_rate
        for sight in (sights[probe] for probe in _main(sights))
    )


def _look(
    loaded: LoadedModel,
    evaluation: Evaluation,
    settings: EvaluationSettings,
    sets: Mapping[str, BehaviourSet],
) -> Sights:
    probes = {
        name: sets[evaluation.probes[name]].split("evaluation") for name in looked_at(evaluation)
    }
    return look(loaded, probes, settings, evaluation.look)


def _main(sights: Sights) -> list[str]:
    """Return the probes that must see: harm, and utility where it is looked at."""
    return [name for name in (HARM, UTILITY) if name in sights]


def _blind(sights: Sights) -> list[str]:
    return [name for name in _main(sights) if sights[name].blind]


class _Sided(NamedTuple):
    """A run whose side sets are those that see a cut, and a line for each that does not."""

    config: RunConfig
    reasons: tuple[str, ...]


def _with_sides(config: RunConfig, sights: Sights) -> _Sided:
    """Leave out the side sets that are noise to the model, or show nothing of a cut."""
    section = config.section(selectivity.STUDY)
    if section is None:
        return _Sided(config, ())
    noise = [
        side
        for side in sides_of(config, section)
        if side != UTILITY
        and (sights[side].blind or not (sights[side].intact.value or 0) >= section.least_side)
    ]
    sides = tuple(side for side in sides_of(config, section) if side not in noise)
    if not sides:
        # The study then says itself that nothing is measurable, and why.
        return _Sided(
            config, ("no side set shows a cut of this model: nothing will be measurable",)
        )
    section = section.model_copy(update={"sides": sides})
    studies = config.studies.model_copy(update={selectivity.STUDY.name: section})
    reasons = tuple(
        f"side set {side} is left out: this model shows no cut by it ({sights[side].scores})"
        for side in noise
    )
    return _Sided(config.model_copy(update={"studies": studies}), reasons)


def _with_one_fraction(config: RunConfig) -> RunConfig:
    """Return a run that tries the middle of its grid alone."""
    studies = {
        name: section.model_copy(update={"fractions": (_middle(section.fractions),)})
        for name, section in config.studies
        if section is not None
    }
    return config.model_copy(update={"studies": config.studies.model_copy(update=studies)})


def _middle(fractions: Sequence[float]) -> float:
    return fractions[len(fractions) // 2]


def _said(
    candidates: Sequence[RunConfig], shown: Mapping[Measure, Sights], config: RunConfig
) -> str:
    """Return in one line which instrument was chosen and why, with what each of them showed."""
    showed = {
        candidate.evaluation.measure: f"{candidate.evaluation.instrument} "
        f"({_scores(shown[candidate.evaluation.measure])})"
        for candidate in candidates
        if candidate.evaluation.measure in shown
    }
    measure = config.evaluation.measure
    sights, chosen = shown[measure], showed.pop(measure)
    rivals = f"; passed over: {'; '.join(showed.values())}" if showed else ""
    if _serves(config, sights, sure=False):
        verb = "tells" if _serves(config, sights, sure=True) else "may tell"
        return f"instrument: {chosen}, which {verb} this model from a destroyed one{rivals}"
    if hidden := _blind(sights):
        return (
            f"instrument: {chosen}, which is blind: it does not tell this model from a destroyed "
            f"one by {' and '.join(hidden)}, so that nothing will be measurable, and one q is "
            f"tried{rivals}"
        )
    return (
        f"instrument: {chosen}, though this model shows less than {100 * config.least_rate:g} %, "
        f"so that nothing may be measurable{rivals}"
    )


def _scores(sights: Sights) -> str:
    """Return both scores of the main probes."""
    return "; ".join(f"{name}: {sights[name].scores}" for name in _main(sights))
