"""Can an instrument see a cut? The intact model against one that a large random cut has destroyed.

A judge of refusals takes a model that babbles for one that complies. No cut can be told from none
by it, and a study that reads it can only say *not measurable*. So a probe is tried before it is
used: it must give a destroyed model a clearly lower score than the intact one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from resect.data.load import BehaviourSet
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.judging import judge_replies
from resect.evaluation.tasks import TaskSet, chances
from resect.model import LoadedModel, prunable_tensors
from resect.records import Interval
from resect.stats import Resampler, relative_drop, rng
from resect.weights.mask import Mask, MaskTensor

# Of every prunable tensor; a tenth of a percent at random does nothing, a third leaves no language.
DESTROYED = 0.3
# What a destroyed model must lose of a score, at the lower bound.
LEAST_DROP = 0.5


@dataclass(frozen=True)
class Sight:
    """What a probe shows of both models.

    Attributes:
        intact: Mean score of the intact model.
        destroyed: Mean score of the destroyed one.
        drop: Relative drop, paired over rows; of questions whose answers are chosen from several,
            of what is above guessing.
    """

    intact: Interval
    destroyed: Interval
    drop: Interval

    @property
    def sees(self) -> bool:
        """Whether the probe tells the two apart."""
        return self.drop.low is not None and self.drop.low >= LEAST_DROP

    @property
    def blind(self) -> bool:
        """Whether it does not; where only the bound falls short, it may, and more rows would tell.

        So is one that sees nothing in the intact model.
        """
        value = self.drop.value
        return value is None or math.isnan(value) or value < LEAST_DROP

    @property
    def scores(self) -> str:
        """Both scores, for the middle of a sentence."""
        destroyed = _score(self.destroyed)
        return f"{_score(self.intact)} in the intact model, {destroyed} in a destroyed one"

    def __str__(self) -> str:
        """Say what was seen, in a sentence."""
        return (
            f"The intact model has {_score(self.intact)}, a destroyed one {_score(self.destroyed)}."
        )


def _score(interval: Interval) -> str:
    return "no score" if interval.value is None else f"{interval.value:.2g}"


def can_see(
    loaded: LoadedModel, probes: Mapping[str, BehaviourSet], settings: EvaluationSettings
) -> dict[str, Sight]:
    """Return for each probe what it shows of the intact and of a destroyed model.

    A few dozen rows a probe are enough; every bit of the model is back afterwards.

    Args:
        loaded: The intact model and its tokenizer.
        probes: Probe name to the rows that it is put to.
        settings: How the study will ask, judge and measure.

    Raises:
        InputError: As `ask` and `judge_replies`.
    """
    intact = _scores(loaded, probes, settings, None)
    destroyed = _scores(loaded, probes, settings, destroying(loaded))
    return {
        name: _sight(name, intact[name], destroyed[name], _Measure(settings, probes[name]))
        for name in probes
    }


def _scores(
    loaded: LoadedModel,
    probes: Mapping[str, BehaviourSet],
    settings: EvaluationSettings,
    variant: Mask | None,
) -> dict[str, list[float | None]]:
    """Return the scores of each probe's rows, in their order."""
    replies = ask(loaded, probes, settings, variant)
    scores: dict[str, list[float | None]] = {name: [] for name in probes}
    for reply, judgement in zip(replies, judge_replies(replies, settings), strict=True):
        scores[reply.probe].append(judgement.score)
    return scores


class _Measure(NamedTuple):
    """How a probe is read, and what it is put to."""

    settings: EvaluationSettings
    data: BehaviourSet


def _sight(
    name: str, intact: list[float | None], destroyed: list[float | None], measure: _Measure
) -> Sight:
    resampler = Resampler(f"instrument/{name}")
    by_task = isinstance(measure.data, TaskSet)
    by_likelihood = measure.settings.measure == "likelihood" and not by_task
    average = resampler.spread if by_likelihood else resampler.rate
    before, after = average({"": intact}), average({"": destroyed})
    compared = before, after
    if by_task and any(chances(measure.data.examples)):
        # A destroyed model still guesses, and what it guesses is no sight.
        compared = (
            resampler.spread({"": _above(intact, measure.data)}),
            resampler.spread({"": _above(destroyed, measure.data)}),
        )
    drop = relative_drop(*compared).interval("drop in a destroyed model")
    if compared[0].value <= 0:
        drop = Interval(drop.name, None)
    return Sight(before.interval("intact model"), after.interval("destroyed model"), drop)


def _above(scores: Sequence[float | None], data: BehaviourSet) -> list[float | None]:
    """Return how far above guessing the scores of questions are."""
    pairs = zip(scores, chances(data.examples), strict=True)
    return [None if score is None else score - chance for score, chance in pairs]


def destroying(loaded: LoadedModel, share: float = DESTROYED, seed: int = 0) -> Mask:
    """Return a mask of so many weights of every prunable tensor, drawn at random.

    It takes 8 bytes a removed weight beside the weight itself.
    """
    tensors = {}
    for name, tensor in prunable_tensors(loaded.model).items():
        size = tensor.numel()
        draw = rng(f"destroyed/{name}", seed).choice(size, round(share * size), replace=False)
        index = torch.from_numpy(draw).sort().values
        value = tensor.reshape(-1)[index.to(tensor.device)].detach().cpu().clone()
        waves = torch.zeros(index.numel(), dtype=torch.uint8)
        tensors[name] = MaskTensor(tuple(tensor.shape), index, value, waves)
    return Mask(tensors, {"control": "destroyed", "control_seed": seed})
