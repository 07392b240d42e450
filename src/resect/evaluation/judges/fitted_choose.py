"""The numbers behind a fitted judge: candidates, cross-validation, probability and threshold.

`fitted_fit.py` says what is done with them. Shapes: n replies, d columns of what is read of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resect.errors import InputError
from resect.stats import seed_of

Numbers = NDArray[np.float64]
FOLDS = 5
# Inverse strengths of regularisation.
STRENGTHS: Mapping[str, tuple[float, ...]] = {"ngrams": (1.0, 10.0), "states": (0.003, 0.03, 0.3)}
# A term of the replies to one prompt says nothing of others, and would tell what was asked.
LEAST_SHARED = 2
MOST_TERMS = 20_000
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


class Candidate(NamedTuple):
    """What a judge reads, and how little it is regularised."""

    features: str
    strength: float


@dataclass(frozen=True)
class Rows:
    """Labelled replies as numbers.

    Attributes:
        labels: [n], in [0, 1].
        hits: [n], whether each is truly a hit.
        groups: [n], replies of one group answer prompts that say the same.
        read: What there is to read, by the name of the features: a matrix of n rows each.
        terms: The columns of the n-grams.
        seed: Of the folds.
    """

    labels: Numbers
    hits: NDArray[np.bool_]
    groups: NDArray[np.intp]
    read: Mapping[str, Any]
    terms: NDArray[np.object_] = field(default_factory=lambda: np.array([], dtype=object))
    seed: int = 0

    def at(self, places: NDArray[np.intp]) -> Rows:
        """Return the replies at these places."""
        return replace(
            self,
            labels=self.labels[places],
            hits=self.hits[places],
            groups=self.groups[places],
            read={name: matrix[places] for name, matrix in self.read.items()},
        )


class Scaled(NamedTuple):
    """How features are scaled: the columns that are read, and the two numbers for each of them."""

    columns: NDArray[np.intp]
    centre: Numbers
    factor: Numbers


@dataclass(frozen=True)
class Linear:
    """A candidate that has been fitted.

    Attributes:
        candidate: Which.
        scaled: How features are scaled; for n-grams `factor` is the idf.
        weights: A weight for each column.
        intercept: What is added.
    """

    candidate: Candidate
    scaled: Scaled
    weights: Numbers
    intercept: float

    def margins(self, rows: Rows) -> Numbers:
        """Return the weighted sums of replies, without the intercept."""
        margins: Numbers = _scale(self.candidate, self.scaled, rows) @ self.weights
        return np.asarray(margins, dtype=np.float64)


@dataclass(frozen=True)
class Chosen:
    """A whole judge: its weights, its probability and its threshold.

    Attributes:
        linear: The weights.
        slope: Of the probability.
        offset: Of the probability, the intercept of the weights included.
        threshold: From which probability on a reply is a hit.
        losses: Log loss of each candidate in cross-validation.
    """

    linear: Linear
    slope: float
    offset: float
    threshold: float
    losses: Mapping[Candidate, float]

    def probabilities(self, rows: Rows) -> Numbers:
        """Return the probability of each reply."""
        return _sigmoid(self.slope * self.linear.margins(rows) + self.offset)


class Fold(NamedTuple):
    """Places of the replies that are fitted on, and of those that are judged."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def deal(rows: Rows) -> list[Fold]:
    """Deal replies to folds, groups whole, hits evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    state = seed_of("judge/folds", rows.seed) % 2**31
    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=state)
    folds = [Fold(*fold) for fold in dealer.split(rows.labels, rows.hits, rows.groups)]
    if any(len(set(rows.hits[fold.train].tolist())) < 2 for fold in folds):
        raise InputError(
            "too few prompts have replies of both kinds to fit a judge on part of them",
            fix="label replies to more prompts",
        )
    return folds


def choose(rows: Rows, step: Callable[[], None]) -> Chosen:
    """Return the judge that cross-validates best, fitted on all rows."""
    folds = deal(rows)
    margins: dict[Candidate, Numbers] = {}
    for features in rows.read:
        for strength in STRENGTHS[features]:
            candidate = Candidate(features, strength)
            out = np.zeros(len(rows.labels))
            for train, test in folds:
                linear = _linear(candidate, rows.at(train))
                out[test] = linear.margins(rows.at(test)) + linear.intercept
            margins[candidate] = out
    platts = {candidate: _platt(out, rows) for candidate, out in margins.items()}
    losses = {
        candidate: _log_loss(platts[candidate].probabilities(out), rows.labels)
        for candidate, out in margins.items()
    }
    best = min(losses, key=lambda candidate: losses[candidate])
    platt, linear = platts[best], _linear(best, rows)
    step()
    return Chosen(
        linear,
        platt.slope,
        platt.slope * linear.intercept + platt.offset,
        _threshold(platt.probabilities(margins[best]), rows.hits),
        losses,
    )


def _scale(candidate: Candidate, scaled: Scaled, rows: Rows) -> Any:
    """Return the features of replies as a fitted candidate reads them."""
    matrix = rows.read[candidate.features]
    if candidate.features == "states":
        return (matrix - scaled.centre) / scaled.factor
    from sklearn.preprocessing import normalize

    counts = matrix[:, scaled.columns].copy()
    counts.data = 1 + np.log(counts.data)
    return normalize(counts.multiply(scaled.factor).tocsr())


def _scaled(candidate: Candidate, rows: Rows) -> Scaled:
    matrix = rows.read[candidate.features]
    if candidate.features == "states":
        spread = matrix.std(axis=0)
        every = np.arange(matrix.shape[1])
        return Scaled(every, matrix.mean(axis=0), np.where(spread > 1e-9, spread, 1.0))
    from sklearn.preprocessing import LabelBinarizer

    dealt = LabelBinarizer(sparse_output=True).fit_transform(rows.groups).T
    shared = np.asarray(((dealt @ matrix) > 0).sum(axis=0)).ravel()
    texts = np.asarray((matrix > 0).sum(axis=0)).ravel()
    # The most common terms; a stable order, so that the same labels give the same judge.
    order = np.argsort(-texts, kind="stable")
    columns = np.sort(order[shared[order] >= LEAST_SHARED][:MOST_TERMS])
    idf = 1 + np.log((1 + matrix.shape[0]) / (1 + texts[columns]))
    return Scaled(columns, np.zeros(len(columns)), idf)


def _linear(candidate: Candidate, rows: Rows) -> Linear:
    """Fit a logistic regression in which both kinds weigh the same."""
    from sklearn.linear_model import LogisticRegression

    scaled = _scaled(candidate, rows)
    parts = _soft(rows.labels)
    balance = parts.weights / np.where(
        parts.hits, parts.weights[parts.hits].sum(), parts.weights[~parts.hits].sum()
    )
    regression = LogisticRegression(C=candidate.strength, max_iter=1000)
    regression.fit(
        _scale(candidate, scaled, rows.at(parts.rows)),
        parts.hits,
        sample_weight=balance * len(rows.labels) / 2,
    )
    return Linear(candidate, scaled, regression.coef_[0], float(regression.intercept_[0]))


class _Soft(NamedTuple):
    """Labels between 0 and 1 as a hit and a miss of the same reply, each with its weight."""

    rows: NDArray[np.intp]
    hits: NDArray[np.bool_]
    weights: Numbers


def _soft(labels: Numbers) -> _Soft:
    high, low = np.flatnonzero(labels > 0), np.flatnonzero(labels < 1)
    return _Soft(
        np.concatenate([high, low]),
        np.concatenate([np.ones(len(high), dtype=bool), np.zeros(len(low), dtype=bool)]),
        np.concatenate([labels[high], 1 - labels[low]]),
    )


class _Platt(NamedTuple):
    """Slope and offset of a probability."""

    slope: float
    offset: float

    def probabilities(self, margins: Numbers) -> Numbers:
        """Return the probability of each margin."""
        return _sigmoid(self.slope * margins + self.offset)


def _platt(margins: Numbers, rows: Rows) -> _Platt:
    """Fit a probability to margins of replies that were not fitted on (Platt 1999).

    Labels are drawn in from 0 and 1 as he does, so that replies that are told apart without a
    mistake do not make certain.
    """
    from sklearn.linear_model import LogisticRegression

    many, few = float(rows.labels.sum()), float((1 - rows.labels).sum())
    inner = rows.labels * (many + 1) / (many + 2) + (1 - rows.labels) / (few + 2)
    parts = _soft(inner)
    regression = LogisticRegression(C=1e6, max_iter=1000)
    regression.fit(margins[parts.rows, None], parts.hits, sample_weight=parts.weights)
    # A judge that ranks the wrong way round knows nothing.
    slope = max(0.0, float(regression.coef_[0, 0]))
    return _Platt(slope, float(regression.intercept_[0]))


def _threshold(probabilities: Numbers, hits: NDArray[np.bool_]) -> float:
    """Return the threshold with the largest sensitivity + specificity, the nearest to a half."""
    known = [
        float((probabilities[hits] >= value).mean() + (probabilities[~hits] < value).mean())
        for value in THRESHOLDS
    ]
    best = [value for value, sum_of in zip(THRESHOLDS, known, strict=True) if sum_of == max(known)]
    return min(best, key=lambda value: abs(value - 0.5))


def _sigmoid(values: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def _log_loss(probabilities: Numbers, labels: Numbers) -> float:
    inner = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(-(labels * np.log(inner) + (1 - labels) * np.log(1 - inner)).mean())
