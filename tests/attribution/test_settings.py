"""How a pass is made and where its data are from, apart and in one as version 0.1.0 has them."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

import tiny
from resect.attribution import AttributeSettings, Origin, Pass, attribute, attribute_many
from resect.attribution.settings import both, origin_of

# The fields of version 0.1.0 in their order, which positional arguments follow.
FIELDS = [
    "method", "reduction", "batch_size", "batch_tokens", "keep", "dense", "accumulator",
    "layers_per_pass", "checkpoint", "allow_partial", "steps", "shrink_to",
    "data_hash", "format", "skip", "category", "seed",
]  # fmt: skip


def test_attribute_settings_have_the_fields_of_both() -> None:
    assert [field.name for field in fields(AttributeSettings)] == FIELDS
    settings = AttributeSettings("snip", "opposite", 2, dense=True, data_hash="ab", seed=3)
    assert replace(settings, keep=0.5).keep == 0.5
    assert settings.fraction(10) == 1.0
    assert origin_of(settings) == settings
    assert origin_of(Pass()) == Origin()
    apart = Pass("snip", "opposite", 2, dense=True), Origin("ab", seed=3)
    assert both(*apart) == settings
    assert both(settings, settings) == settings


def test_scores_are_the_same_whichever_way_the_settings_are_given() -> None:
    model, tokenizer, encoded = tiny.build("llama"), tiny.tokenizer(), tiny.examples(3)
    origin = Origin(data_hash="ab", format="raw", skip=1, category="a", seed=3)
    apart = attribute_many(
        model, tokenizer, encoded, settings=Pass(method="random", dense=True), origin=origin
    )["signed"]
    settings = both(Pass(method="random", dense=True), origin)
    for scores in (
        attribute_many(model, tokenizer, encoded, settings=settings)["signed"],
        attribute(model, tokenizer, encoded, settings),
        attribute(model, tokenizer, encoded, **vars(settings)),
    ):
        assert scores.meta == apart.meta
        for name, tensor in apart.tensors.items():
            assert torch.equal(scores.tensors[name].value, tensor.value)
    assert (apart.meta.data_hash, apart.meta.seed, apart.meta.category) == ("ab", 3, "a")
    # The seed of the origin is that of the draw.
    reseeded = attribute_many(
        model, tokenizer, encoded, settings=settings, origin=replace(origin, seed=4)
    )["signed"]
    assert any(
        not torch.equal(reseeded.tensors[name].index, tensor.index)
        for name, tensor in apart.tensors.items()
    )
