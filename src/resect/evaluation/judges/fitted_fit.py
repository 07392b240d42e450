"""Fit a judge on labelled replies: what `resect judge fit` calls.

    candidates    n-grams and, with a model, its hidden states; each with a few strengths of
                  regularisation of a logistic regression (scikit-learn)
    fit(rows)     every candidate is cross-validated; the one with the least log loss is fitted on
                  all rows, and its probability (Platt 1999) and threshold are those of the
                  cross-validation. The threshold has the largest sensitivity + specificity.
    error         fit(rows of all folds but one) judges the replies of that fold, so that nothing
                  of a judge was chosen on a reply that measures it. The file's judge is
                  fit(all rows), which has seen a quarter more.

Prompts that say the same (`near_duplicates`) are never on both sides of a fold. A label between 0
and 1 counts as a hit by its part and as none by the rest, so that a probability is an expected
label; true hits, as sensitivity has them, are labels of at least a half.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from resect.errors import InputError
from resect.evaluation.judges.error import HeldOut, error_rows
from resect.evaluation.judges.fitted import Fitted, prompt_hash
from resect.evaluation.judges.fitted_ngrams import Ngrams, terms
from resect.evaluation.judges.fitted_states import States, format_of, hidden_states
from resect.evaluation.labels import Labelled, Labels, read_labels
from resect.evaluation.probes import Goal
from resect.files import provenance
from resect.files.writing import plain, write_json
from resect.records import SCHEMA_VERSION, Row
from resect.stats import near_duplicates, seed_of

if TYPE_CHECKING:
    from resect.model import LoadedModel

Numbers = NDArray[np.float64]
FOLDS = 5
# Fewer different prompts, hits or others in a fold would leave it without one of them.
LEAST_PROMPTS = 4 * FOLDS
LEAST_EACH = 2 * FOLDS
# Inverse strengths of regularisation.
STRENGTHS: Mapping[str, tuple[float, ...]] = {"ngrams": (1.0, 10.0), "states": (0.003, 0.03, 0.3)}
# A term of the replies to one prompt says nothing of others, and would tell what was asked.
LEAST_SHARED = 2
MOST_TERMS = 20_000
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
# Digits of a weight in the file.
DIGITS = 7

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class FitRequest:
    """The options of `resect judge fit`; see its help."""

    labels: tuple[Path, ...]
    model: str | None = None
    means: Goal = "comply"
    seed: int = 0


class _Candidate(NamedTuple):
    """What a judge reads, and how little it is regularised."""

    features: str
    strength: float


@dataclass(frozen=True)
class _Rows:
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

    def at(self, places: NDArray[np.intp]) -> _Rows:
        """Return the replies at these places."""
        return replace(
            self,
            labels=self.labels[places],
            hits=self.hits[places],
            groups=self.groups[places],
            read={name: matrix[places] for name, matrix in self.read.items()},
        )


class _Scaled(NamedTuple):
    """How features are scaled: the columns that are read, and the two numbers for each of them."""

    columns: NDArray[np.intp]
    centre: Numbers
    factor: Numbers


@dataclass(frozen=True)
class _Linear:
    """A candidate that has been fitted.

    Attributes:
        candidate: Which.
        scaled: How features are scaled; for n-grams `factor` is the idf.
        weights: A weight for each column.
        intercept: What is added.
    """

    candidate: _Candidate
    scaled: _Scaled
    weights: Numbers
    intercept: float

    def margins(self, rows: _Rows) -> Numbers:
        """Return the weighted sums of replies, without the intercept."""
        margins: Numbers = _scale(self.candidate, self.scaled, rows) @ self.weights
        return np.asarray(margins, dtype=np.float64)


@dataclass(frozen=True)
class _Chosen:
    """A whole judge: its weights, its probability and its threshold.

    Attributes:
        linear: The weights.
        slope: Of the probability.
        offset: Of the probability, the intercept of the weights included.
        threshold: From which probability on a reply is a hit.
        losses: Log loss of each candidate in cross-validation.
    """

    linear: _Linear
    slope: float
    offset: float
    threshold: float
    losses: Mapping[_Candidate, float]

    def probabilities(self, rows: _Rows) -> Numbers:
        """Return the probability of each reply."""
        return _sigmoid(self.slope * self.linear.margins(rows) + self.offset)


def fit_judge(request: FitRequest, output: Path, on_progress: Report | None = None) -> Fitted:
    """Fit a judge, measure it in cross-validation and write its file.

    Args:
        request: The labels and what may be read.
        output: The file; it must not be there.
        on_progress: Called with fits done and fits in all.

    Raises:
        InputError: scikit-learn is missing, the file is there, labels cannot be used as given or
            are too few, or the model cannot be loaded.
    """
    _require()
    if output.exists():
        raise InputError("the output file is there already", got=str(output), fix="choose another")
    labels = read_labels(request.labels)
    spoken = tuple(row for row in labels.rows if any(map(str.isalnum, row.text)))
    groups = np.array(near_duplicates([row.prompt for row in spoken]), dtype=np.intp)
    _refuse_few(spoken, groups)
    loaded = None
    if request.model is not None:
        from resect.model import load_model

        loaded = load_model(request.model)
    rows = _rows(spoken, groups, loaded, request.seed)
    step = _steps(on_progress)
    folds = _folds(rows)
    called, scores = np.zeros(len(spoken), dtype=bool), np.zeros(len(spoken))
    for train, test in folds:
        judge = _choose(rows.at(train), step)
        scores[test] = judge.probabilities(rows.at(test))
        called[test] = scores[test] >= judge.threshold
    held_out = HeldOut(
        tuple(groups.tolist()),
        tuple(row.category for row in spoken),
        tuple(row.hit for row in spoken),
        tuple(called.tolist()),
        tuple(round(score, DIGITS) for score in scores.tolist()),
    )
    fitted = _fitted(request, labels, spoken, rows, _choose(rows, step), held_out, loaded)
    write_json(output, plain(fitted))
    return fitted


def _fitted(
    request: FitRequest,
    labels: Labels,
    spoken: Sequence[Labelled],
    rows: _Rows,
    chosen: _Chosen,
    held_out: HeldOut,
    loaded: LoadedModel | None,
) -> Fitted:
    """Return what the file holds."""
    origin = provenance() | {
        "scikit_learn": importlib.metadata.version("scikit-learn"),
        "labels": dict(labels.hashes),
        "rows": len(labels.rows),
        "fitted_on": len(spoken),
        "doubled": labels.doubled,
        "no_text": labels.left_out,
        "prompts_that_differ": len(set(rows.groups.tolist())),
        "folds": FOLDS,
        "seed": request.seed,
        "chosen": chosen.linear.candidate._asdict(),
        "log_loss": {
            f"{candidate.features}, C = {candidate.strength:g}": round(loss, DIGITS)
            for candidate, loss in chosen.losses.items()
        },
    }
    fitted = partial(
        Fitted,
        SCHEMA_VERSION,
        request.means,
        chosen.slope,
        chosen.offset,
        chosen.threshold,
        held_out,
        tuple(cast("Row", row) for row in error_rows(held_out)),
        prompts=tuple(sorted({prompt_hash(row.prompt) for row in spoken})),
        provenance=origin,
    )
    scaled, weights = chosen.linear.scaled, _short(chosen.linear.weights)
    if chosen.linear.candidate.features == "ngrams":
        words = tuple(str(term) for term in rows.terms[scaled.columns])
        return fitted(ngrams=Ngrams(words, _short(scaled.factor), weights))
    if loaded is None or request.model is None:
        raise ValueError("hidden states without a model")
    from resect.model import model_fingerprint

    return fitted(
        states=States(
            request.model,
            model_fingerprint(loaded.model),
            format_of(loaded),
            _short(scaled.centre),
            _short(scaled.factor),
            weights,
        )
    )


def _short(numbers: Numbers) -> tuple[float, ...]:
    return tuple(float(f"{number:.{DIGITS}g}") for number in numbers)


def _require() -> None:
    """Say how scikit-learn is had.

    Raises:
        InputError: It is missing.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError(
            "fitting a judge needs scikit-learn; judging with one does not",
            fix="pip install 'resect[judge]'",
        ) from error


def _refuse_few(rows: Sequence[Labelled], groups: NDArray[np.intp]) -> None:
    hits = sum(row.hit for row in rows)
    prompts = len(set(groups.tolist()))
    if prompts < LEAST_PROMPTS or min(hits, len(rows) - hits) < LEAST_EACH:
        raise InputError(
            "there are too few labelled replies to fit a judge",
            got=f"{prompts} prompts that differ, {hits} hits, {len(rows) - hits} others",
            allowed=f"at least {LEAST_PROMPTS} prompts, {LEAST_EACH} hits and {LEAST_EACH} others",
            fix="label more replies; prompts that share half of their words count as one",
        )


def _steps(on_progress: Report | None) -> Callable[[], None]:
    """Return what is called after each choice of a judge."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, FOLDS + 1)

    if on_progress is not None:
        on_progress(0, FOLDS + 1)
    return step


def _rows(
    labelled: Sequence[Labelled], groups: NDArray[np.intp], loaded: LoadedModel | None, seed: int
) -> _Rows:
    """Return labelled replies as numbers; n-grams as counts, which are the same in every fold."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=lambda row: terms(row.prompt, row.text), dtype=np.float64)
    read: dict[str, Any] = {"ngrams": counter.fit_transform(labelled)}
    if loaded is not None:
        prompts, texts = [row.prompt for row in labelled], [row.text for row in labelled]
        states = hidden_states(loaded, prompts, texts, format_of(loaded))
        read["states"] = np.array(states, dtype=np.float64)
    return _Rows(
        np.array([row.label for row in labelled]),
        np.array([row.hit for row in labelled]),
        groups,
        read,
        counter.get_feature_names_out(),
        seed,
    )


class _Fold(NamedTuple):
    """Places of the replies that are fitted on, and of those that are judged."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def _folds(rows: _Rows) -> list[_Fold]:
    """Deal replies to folds, groups whole, hits evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    state = seed_of("judge/folds", rows.seed) % 2**31
    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=state)
    folds = [_Fold(*fold) for fold in dealer.split(rows.labels, rows.hits, rows.groups)]
    if any(len(set(rows.hits[fold.train].tolist())) < 2 for fold in folds):
        raise InputError(
            "too few prompts have replies of both kinds to fit a judge on part of them",
            fix="label replies to more prompts",
        )
    return folds


def _choose(rows: _Rows, step: Callable[[], None]) -> _Chosen:
    """Return the judge that cross-validates best, fitted on all rows."""
    folds = _folds(rows)
    margins: dict[_Candidate, Numbers] = {}
    for features in rows.read:
        for strength in STRENGTHS[features]:
            candidate = _Candidate(features, strength)
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
    return _Chosen(
        linear,
        platt.slope,
        platt.slope * linear.intercept + platt.offset,
        _threshold(platt.probabilities(margins[best]), rows.hits),
        losses,
    )


def _scale(candidate: _Candidate, scaled: _Scaled, rows: _Rows) -> Any:
    """Return the features of replies as a fitted candidate reads them."""
    matrix = rows.read[candidate.features]
    if candidate.features == "states":
        return (matrix - scaled.centre) / scaled.factor
    from sklearn.preprocessing import normalize

    counts = matrix[:, scaled.columns].copy()
    counts.data = 1 + np.log(counts.data)
    return normalize(counts.multiply(scaled.factor).tocsr())


def _scaled(candidate: _Candidate, rows: _Rows) -> _Scaled:
    matrix = rows.read[candidate.features]
    if candidate.features == "states":
        spread = matrix.std(axis=0)
        every = np.arange(matrix.shape[1])
        return _Scaled(every, matrix.mean(axis=0), np.where(spread > 1e-9, spread, 1.0))
    from sklearn.preprocessing import LabelBinarizer

    dealt = LabelBinarizer(sparse_output=True).fit_transform(rows.groups).T
    shared = np.asarray(((dealt @ matrix) > 0).sum(axis=0)).ravel()
    texts = np.asarray((matrix > 0).sum(axis=0)).ravel()
    # The most common terms; a stable order, so that the same labels give the same judge.
    order = np.argsort(-texts, kind="stable")
    columns = np.sort(order[shared[order] >= LEAST_SHARED][:MOST_TERMS])
    idf = 1 + np.log((1 + matrix.shape[0]) / (1 + texts[columns]))
    return _Scaled(columns, np.zeros(len(columns)), idf)


def _linear(candidate: _Candidate, rows: _Rows) -> _Linear:
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
    return _Linear(candidate, scaled, regression.coef_[0], float(regression.intercept_[0]))


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


def _platt(margins: Numbers, rows: _Rows) -> _Platt:
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
