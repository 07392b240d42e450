"""A measure that cannot tell a destroyed model from the intact one is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from command_line import write
from resect.data.load import load_data
from resect.evaluation.ask import NO_ATTACK, EvaluationSettings
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.instrument import Sight, can_see, destroying
from resect.model import LoadedModel, prunable_tensors
from resect.records import Interval

FEW = GenerationSettings(max_new_tokens=6)


@pytest.fixture
def fluent(tmp_path: Path) -> tuple[LoadedModel, Path]:
    """Return a model and answers that it finds likely: its own."""
    model = tiny.build("llama", seed=3)
    rows = tiny.rows(80, "own")
    tiny.answer_half(rows, model, tiny.cut(model, share=0.0))
    own = [row for row in rows[::2] if row["completion"].strip()]
    return LoadedModel(model, tiny.tokenizer()), write(tmp_path / "own.jsonl", own)


def test_a_likelihood_sees_and_a_judge_of_refusals_is_blind(
    fluent: tuple[LoadedModel, Path],
) -> None:
    loaded, path = fluent
    before = {name: value.clone() for name, value in prunable_tensors(loaded.model).items()}
    data = load_data(path)
    likely = can_see(
        loaded,
        {"generation": data, "side": data},
        EvaluationSettings(generation=FEW, measure="likelihood"),
    )
    assert likely["generation"].sees, str(likely["generation"])
    keyword = EvaluationSettings(attack=NO_ATTACK, generation=FEW, judge="keyword")
    blind = can_see(loaded, {"generation": data}, keyword)
    assert not blind["generation"].sees
    assert str(blind["generation"]) == "The intact model has 1, a destroyed one 1."
    after = prunable_tensors(loaded.model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_destroyed_share_is_that_of_every_tensor(fluent: tuple[LoadedModel, Path]) -> None:
    loaded, _ = fluent
    mask = destroying(loaded, share=0.25)
    for name, tensor in mask.tensors.items():
        assert tensor.index.numel() == round(0.25 * tensor.size), name
        assert tensor.index.tolist() == sorted(set(tensor.index.tolist()))


def test_without_a_lower_bound_nothing_is_seen() -> None:
    none = Interval("", None)
    assert not Sight(none, none, none).sees
    assert str(Sight(none, none, none)).startswith("The intact model has no score")
