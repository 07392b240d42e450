"""A rate that a judge measured, corrected for how the judge errs.

Names, for replies of which a share t is truly a hit:
    h     share of all replies that the judge calls a hit
    c     share of all replies that it looked at; the others are incoherent, and no hits
    a, b  its sensitivity and specificity: how often it says so of true hits and of the others
    J     a + b - 1, what it knows beyond chance (Youden 1950)

**By its error** (Rogan and Gladen 1978). The judge calls h = t a + (c - t)(1 - b) of them a hit, so

    t = (h - c (1 - b)) / J

t rises with h and b and falls with a, as long as it lies in [0, c]; outside of that it is cut off.
So the lower bound takes the lower ends of h and b and the upper end of a. One more prompt that
decides a bound is coherent at both ends, so c enters with its upper one. Labels and replies are
drawn apart. Where J is not above 0 in a draw, that draw says nothing: its bounds are 0 and c.

**By labels of some of these replies** (prediction-powered inference: Angelopoulos, Bates,
Fannjiang, Jordan and Zrnic 2023; the factor l is that of Angelopoulos, Duchi and Zrnic 2023). With
the judge's score f of every reply and a label y of some, drawn at random,

    t = l mean of f over replies without a label - mean of (l f - y) over replies with one
    l = Cov(y, f) / ((1 + n / N) Var(f)), within [0, 1], from the n labelled of n + N replies

which is right whatever the judge is worth, and does not ask that it errs here as it did on other
replies. l = 0 is the labels' own mean.
The bounds are the house's, with one more prompt at the worst end of l f - y, so that with few
labels, or near 0 and 1, they are no narrower than those of the labels alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from resect.stats.resample import Groups, Resampler, Scores
from resect.stats.sample import Sample


class ErrorRates(NamedTuple):
    """How a judge errs.

    Attributes:
        sensitivity: How often it calls a true hit a hit.
        specificity: How often it says of another reply that it is none.
    """

    sensitivity: Sample
    specificity: Sample

    @property
    def informed(self) -> float:
        """J of the header; NaN where either is not known."""
        return self.sensitivity.value + self.specificity.value - 1

    def of_the_opposite(self) -> ErrorRates:
        """Return the same for the opposite hit: what was a miss is one."""
        return ErrorRates(self.specificity, self.sensitivity)


def rogan_gladen(hits: Sample, judged: Sample, errors: ErrorRates) -> Sample:
    """Return the share of true hits, in [0, 1].

    Args:
        hits: h of the header: a reply that was not looked at is no hit.
        judged: c of the header, of the same resampled prompts.
        errors: The judge's, of other draws.

    Returns:
        NaN where the judge knows nothing (J is not above 0, or an error rate has no value).
    """
    import numpy as np

    if not errors.informed > 0 or math.isnan(hits.value):
        return Sample(math.nan, np.full(len(hits.draws), np.nan))
    right, wrong = errors.sensitivity, errors.specificity
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (hits.draws - judged.draws * (1 - wrong.draws)) / (right.draws + wrong.draws - 1)
        low, high = right.above + wrong.below - 1, right.below + wrong.above - 1
        below = (hits.below - judged.above * (1 - wrong.below)) / low
        above = (hits.above - judged.above * (1 - wrong.above)) / high
    value = (hits.value - judged.value * (1 - wrong.value)) / errors.informed
    silent = np.minimum(low, high) <= 0
    return Sample(
        min(1.0, max(0.0, value)),
        np.clip(np.where(silent, np.nan, draws), 0, 1),
        trials=hits.trials,
        below=np.where(silent, 0, np.clip(below, 0, 1)),
        above=np.where(silent, judged.above, np.clip(above, 0, 1)),
    )


def prediction_powered(
    resampler: Resampler,
    scores: Mapping[str, Scores],
    labels: Mapping[str, Scores],
    groups: Groups | None = None,
) -> Sample:
    """Return the mean label of all replies, from the judge's scores and labels of some.

    Args:
        resampler: What draws the prompts.
        scores: For each stratum f of the header, in [0, 1]; None where the judge gave none: such
            replies are left out.
        labels: For each stratum y of the header, in [0, 1]; None where there is no label.
        groups: As in `Resampler.rate`.

    Returns:
        NaN where no reply, or none with a label, has a score.
    """
    import numpy as np

    factor = power(
        [score for name in scores for score in scores[name]],
        [label for name in scores for label in labels[name]],
    )
    rest: dict[str, list[float | None]] = {}
    offsets: dict[str, list[float | None]] = {}
    for name, column in scores.items():
        pairs = list(zip(column, labels[name], strict=True))
        rest[name] = [score if label is None else None for score, label in pairs]
        # l f - y lies in [-1, l], and a rate has the ends 0 and 1.
        offsets[name] = [
            None if score is None or label is None else (factor * score - label + 1) / (factor + 1)
            for score, label in pairs
        ]
    offset = resampler.rate(offsets, groups)
    if math.isnan(offset.value):
        return Sample(math.nan, np.full(len(offset.draws), np.nan))
    if any(score is not None for column in rest.values() for score in column):
        whole = 1 - (offset * (factor + 1) - resampler.rate(rest, groups) * factor)
    else:
        whole = 1 - offset * (factor + 1)
    return Sample(
        min(1.0, max(0.0, whole.value)),
        np.clip(whole.draws, 0, 1),
        trials=offset.trials,
        below=np.clip(whole.below, 0, 1),
        above=np.clip(whole.above, 0, 1),
    )


def power(scores: Scores, labels: Scores) -> float:
    """Return l of the header, in [0, 1]; 0 where every reply has a label or no score varies.

    Args:
        scores: f of every reply, None where there is none.
        labels: y of every reply, None where there is none.
    """
    import numpy as np

    pairs = [(f, y) for f, y in zip(scores, labels, strict=True) if f is not None]
    labelled = np.array([(f, y) for f, y in pairs if y is not None], dtype=np.float64)
    rest = len(pairs) - len(labelled)
    if rest == 0 or len(labelled) < 2:
        return 0.0
    spread = float(np.var([f for f, _ in pairs], ddof=1))
    if spread == 0:
        return 0.0
    together = float(np.cov(labelled[:, 0], labelled[:, 1])[0, 1])
    return min(1.0, max(0.0, together / ((1 + len(labelled) / rest) * spread)))
