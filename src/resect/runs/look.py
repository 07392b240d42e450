"""A first look: can what is to be measured by see a cut of this model at all?

A few rows a probe are put to the intact model and to one that a large random cut has destroyed
(`resect.evaluation.instrument`). What was seen stands in `instrument.json` of the run folder, where
the studies find it: of a blind probe nothing is measurable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resect.data.load import BehaviourSet
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.instrument import Sight, can_see
from resect.evaluation.probes import find_probe
from resect.files.reading import read_json
from resect.files.writing import plain, write_json
from resect.model import LoadedModel
from resect.records import Interval, Measure
from resect.runs.config import RunConfig
from resect.runs.sets import Sets
from resect.runs.subject import Subjects
from resect.studies.design import Evaluation
from resect.studies.measurements import INSTRUMENT_FILE

# Rows a probe at first; twice as many, and so on, where they leave it open.
LOOKED = 24
MOST_LOOKED = 4 * LOOKED

Sights = Mapping[str, Sight]


def looked_at(evaluation: Evaluation) -> list[str]:
    """Return the probes whose sight matters: those that are judged, or all by likelihood."""
    if evaluation.measure == "likelihood":
        return list(evaluation.probes)
    return [name for name in evaluation.probes if find_probe(name).judged != "never"]


def look(
    loaded: LoadedModel,
    probes: Mapping[str, BehaviourSet],
    settings: EvaluationSettings,
    count: int = LOOKED,
) -> Sights:
    """Return what each probe shows of the intact and of a destroyed model.

    Args:
        loaded: The intact model and its tokenizer.
        probes: Probe name to the rows that it will be put to.
        settings: How the study will ask, judge and measure.
        count: Rows to look at; a probe that they leave open is shown up to four times as many.
    """
    most = count * MOST_LOOKED // LOOKED
    sights: dict[str, Sight] = {}
    while probes:
        some = {name: _spread(data, count) for name, data in probes.items()}
        sights |= can_see(loaded, some, settings)
        probes = {
            name: data
            for name, data in probes.items()
            if count < most
            and len(data.examples) > count
            and not (sights[name].sees or sights[name].blind)
        }
        count *= 2
    return sights


def _spread(data: BehaviourSet, count: int) -> BehaviourSet:
    """Return rows from all over a set, which may be in the order of its categories."""
    total = len(data.examples)
    if total <= count:
        return data
    return data.at([position * total // count for position in range(count)])


def look_once(
    config: RunConfig, run: Path, settings: EvaluationSettings, sets: Sets, subjects: Subjects
) -> None:
    """Look with the probes of a run, unless that was done or is not asked for."""
    count = config.evaluation.look
    if not count or (run / INSTRUMENT_FILE).exists():
        return
    seeds: dict[int, Sights] = {}
    for seed in config.seeds:
        probes = {name: sets.asked(name, seed) for name in looked_at(config.evaluation)}
        seeds[seed] = look(subjects.load(config.subject, seed).loaded, probes, settings, count)
    shown = [f"{name}: {sight.scores}" for name, sight in seeds[config.seeds[0]].items()]
    write_looks(run, seeds, {}, f"{config.evaluation.instrument} ({'; '.join(shown)})")


def write_looks(
    run: Path, seeds: Mapping[int, Sights], tried: Mapping[Measure, Sights], said: str
) -> None:
    """Write `instrument.json`.

    Args:
        run: Folder of the run.
        seeds: Seed to what the run's own probes show.
        tried: Measure to what it showed, where several were tried.
        said: What harm is measured by, in a line for the report.
    """
    values = {
        "said": said,
        "seeds": {str(seed): _written(sights) for seed, sights in seeds.items()},
        "tried": {measure: _written(sights) for measure, sights in tried.items()},
    }
    write_json(run / INSTRUMENT_FILE, values)


def _written(sights: Sights) -> dict[str, object]:
    return {
        name: {
            "intact": plain(sight.intact),
            "destroyed": plain(sight.destroyed),
            "drop": plain(sight.drop),
            "sees": sight.sees,
            "blind": sight.blind,
            "said": str(sight),
        }
        for name, sight in sights.items()
    }


def tried_before(run: Path) -> dict[Measure, Sights]:
    """Return what was seen with each instrument that a run has tried; nothing if it has not."""
    path = run / INSTRUMENT_FILE
    if not path.exists():
        return {}
    return {
        measure: {
            name: Sight(*(Interval(**sight[key]) for key in ("intact", "destroyed", "drop")))
            for name, sight in sights.items()
        }
        for measure, sights in read_json(path)["tried"].items()
    }
