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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from resect.errors import InputError
from resect.evaluation.judges.error import HeldOut, error_rows
from resect.evaluation.judges.fitted import Fitted, prompt_hash
from resect.evaluation.judges.fitted_choose import FOLDS, Chosen, Numbers, Rows, choose, deal
from resect.evaluation.judges.fitted_ngrams import Ngrams, terms
from resect.evaluation.judges.fitted_states import States, format_of, hidden_states
from resect.evaluation.labels import Labelled, Labels, read_labels
from resect.evaluation.probes import Goal
from resect.files import provenance
from resect.files.writing import plain, write_json
from resect.records import SCHEMA_VERSION, Row
from resect.stats import near_duplicates

if TYPE_CHECKING:
    from resect.model import LoadedModel

# Fewer different prompts, hits or others in a fold would leave it without one of them.
LEAST_PROMPTS = 4 * FOLDS
LEAST_EACH = 2 * FOLDS
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
    folds = deal(rows)
    called, scores = np.zeros(len(spoken), dtype=bool), np.zeros(len(spoken))
    for train, test in folds:
        judge = choose(rows.at(train), step)
        scores[test] = judge.probabilities(rows.at(test))
        called[test] = scores[test] >= judge.threshold
    held_out = HeldOut(
        tuple(groups.tolist()),
        tuple(row.category for row in spoken),
        tuple(row.hit for row in spoken),
        tuple(called.tolist()),
        tuple(round(score, DIGITS) for score in scores.tolist()),
    )
    material = _Material(labels, spoken, rows, loaded)
    fitted = _fitted(request, material, choose(rows, step), held_out)
    write_json(output, plain(fitted))
    return fitted


class _Material(NamedTuple):
    """What a judge is fitted on.

    Attributes:
        labels: The labelled replies as they were read.
        spoken: Those that say something.
        rows: The same as numbers.
        loaded: The model of which hidden states were read, if any.
    """

    labels: Labels
    spoken: Sequence[Labelled]
    rows: Rows
    loaded: LoadedModel | None


def _fitted(request: FitRequest, material: _Material, chosen: Chosen, held_out: HeldOut) -> Fitted:
    """Return what the file holds."""
    labels, spoken, rows, loaded = material
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
) -> Rows:
    """Return labelled replies as numbers; n-grams as counts, which are the same in every fold."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=lambda row: terms(row.prompt, row.text), dtype=np.float64)
    read: dict[str, Any] = {"ngrams": counter.fit_transform(labelled)}
    if loaded is not None:
        prompts, texts = [row.prompt for row in labelled], [row.text for row in labelled]
        states = hidden_states(loaded, prompts, texts, format_of(loaded))
        read["states"] = np.array(states, dtype=np.float64)
    return Rows(
        np.array([row.label for row in labelled]),
        np.array([row.hit for row in labelled]),
        groups,
        read,
        counter.get_feature_names_out(),
        seed,
    )
