"""What direct preference optimisation is trained on where answers are longer than the context."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from resect.edit.tune import Preference, TuneSettings, tune_preferences
from resect.errors import InputError
from resect.model import LoadedModel

LIMIT = 64
SETTINGS = TuneSettings(steps=1, rate=1e-3, batch=2)


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{(start + number) % len(tiny.WORDS)}" for number in range(count))


def tuned(*pairs: Preference) -> list[torch.Tensor]:
    """Return the weights of a model after one step on some pairs."""
    model: Any = tiny.build("llama")
    tune_preferences(LoadedModel(model, tiny.tokenizer()), list(pairs), SETTINGS)
    return [parameter.detach().clone() for parameter in model.parameters()]


SHORT = Preference(words(5), words(6), words(6, 20))


def test_answers_that_do_not_fit_are_compared_as_far_as_they_go_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = Preference(words(5), words(80), words(6, 20))
    weights = tuned(long, SHORT)
    (said,) = [record.getMessage() for record in caplog.records if "context" in record.msg]
    assert said.startswith("the answers of 1 of 2 pairs are compared without their ends")
    assert f"{LIMIT} tokens" in said
    # What is behind the context does not matter, and what is before it does.
    ends = Preference(words(5), f"{words(75)} w50 w51", words(6, 20))
    starts = Preference(words(5), words(80, 7), words(6, 20))
    assert all(torch.equal(*pair) for pair in zip(weights, tuned(ends, SHORT), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(weights, tuned(starts, SHORT), strict=True))


def test_pairs_that_fit_are_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    tuned(SHORT, SHORT)
    assert not [record for record in caplog.records if "context" in record.getMessage()]


@pytest.mark.parametrize(
    "pair",
    [
        Preference(words(70), words(6), words(6, 20)),
        Preference(words(5), words(80), f"{words(75)} w50 w51"),
    ],
    ids=["the prompt fills the context", "the answers differ behind it"],
)
def test_pairs_with_nothing_to_prefer_are_refused(pair: Preference) -> None:
    # TRL left the first out without a word, and trained on the second for nothing.
    with pytest.raises(InputError, match=r"the answers of 1 of 2 pairs do not differ within"):
        tuned(pair, SHORT)
