"""Models that see the token that they predict are refused: their loss says nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

import mapped
from resect.errors import InputError
from resect.model.faults import refuse_encoder


def future_shows(model: Any) -> bool:
    """Tell whether a change of the last token changes what is said of those before."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    changed = ids.clone()
    changed[0, -1] = 20
    with torch.no_grad():
        before, after = (model(input_ids=each, use_cache=False).logits for each in (ids, changed))
    return not torch.allclose(before[:, :-1], after[:, :-1], atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "sides"),
    [
        ("bert-generation", {"is_decoder": False}),
        ("xlnet", {}),
        ("cpmant", {}),
        ("doge", {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2}),
    ],
)
def test_what_sees_the_future_is_refused(
    model_type: str, sides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    types = mapped.script("model_types")
    needs = {**types.NEEDS, model_type: {**types.NEEDS.get(model_type, {}), **sides}}
    monkeypatch.setattr(types, "NEEDS", needs)
    if "is_decoder" in sides:
        monkeypatch.setattr(types, "reads_both_ways", lambda _type: False)
    model = mapped.script("model_trials").filled(model_type)
    assert future_shows(model)
    with pytest.raises(InputError, match="reads in both directions"):
        refuse_encoder(model.config, "it")


def test_the_same_types_are_taken_where_they_read_in_one_direction() -> None:
    for model_type, sides in (("bert-generation", {"is_decoder": True}), ("doge", {})):
        config = AutoConfig.for_model(model_type, **sides)
        assert refused(config) == ""
        # One switch away from those that read in both.
        switch = {"is_decoder": False} if sides else {"is_moe": True}
        assert "reads in both directions" in refused(AutoConfig.for_model(model_type, **switch))


def refused(config: Any) -> str:
    """Return why a configuration is refused, "" if it is taken."""
    try:
        refuse_encoder(config, "it")
    except InputError as error:
        return str(error)
    return ""
