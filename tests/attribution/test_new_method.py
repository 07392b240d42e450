"""A new score method is a function and a line in `METHODS`; nothing else has to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from command_line import call, ok, write
from resect.attribution import Pass, attribute, attribute_many
from resect.attribution.methods import METHODS, Rule
from resect.attribution.offloaded import attribute_streamed
from resect.attribution.rounds import locate
from resect.attribution.sums import Statistic
from resect.errors import InputError
from resect.model import find_prunable
from resect.model.on_disk import open_shelf
from resect.weights.scores import Scores


def cubic(weight: Tensor, means: Mapping[Statistic, Tensor]) -> Tensor:
    """Return -w³·mean gradient [*]: sums that exist, in a formula that does not."""
    return -(weight.float() ** 3 * means["gradient"])


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add the method as its line would."""
    monkeypatch.setitem(METHODS, "cubic", {"signed": Rule(("gradient",), cubic, contrasts=True)})
    return "cubic"


def test_it_scores_in_memory_and_from_disk(tmp_path: Path) -> None:
    model, tokenizer, encoded = tiny.build("llama"), tiny.tokenizer(), tiny.examples(4)
    settings = Pass(method="cubic", dense=True)
    scores = attribute(model, tokenizer, encoded, settings)
    assert scores.meta.method == "cubic"
    assert scores.meta.ranks_targets
    # The formula is linear in the gradient, so the scores are those of snip times w².
    snip = attribute(model, tokenizer, encoded, Pass(dense=True))
    for weight in find_prunable(model).weights:
        values = model.get_parameter(weight.name).detach()
        for tensor in weight.places:
            squares = tensor.view(values).reshape(-1).square()
            dense = torch.empty_like(squares)
            dense[scores.tensors[tensor.name].index] = scores.tensors[tensor.name].value
            expected = torch.empty_like(squares)
            expected[snip.tensors[tensor.name].index] = snip.tensors[tensor.name].value
            torch.testing.assert_close(dense, squares * expected)
    shelf = open_shelf(tiny.save("llama", tmp_path / "m"))
    streamed = attribute_streamed(shelf, encoded, settings=settings)["signed"]
    assert list(streamed.tensors) == list(scores.tensors)
    for name, entry in scores.tensors.items():
        torch.testing.assert_close(streamed.tensors[name].value, entry.value, rtol=1e-4, atol=1e-6)


def test_it_locates_in_rounds_and_against_a_contrast() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    target, contrast = tiny.examples(4, seed=1), tiny.examples(3, seed=2)
    mask = locate(
        model, tokenizer, target, None, contrast=contrast, q=0.02, p=0, rounds=2,
        settings=Pass(method="cubic"),
    )  # fmt: skip
    assert mask.count > 0
    assert mask.meta["target"]["method"] == "cubic"


def test_the_commands_know_it_and_errors_name_it(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    data = write(tmp_path / "d.jsonl", tiny.rows(3, "a"))
    output = tmp_path / "a.scores.safetensors"
    ok("score", folder, "--data", data, "--method", "cubic", "-o", output)
    assert Scores.load(output).meta.method == "cubic"
    failed = call("score", folder, "--data", data, "--method", "cubbic", "-o", output)
    assert failed.returncode == 2
    assert "allowed: cubic, " in failed.stderr
    with pytest.raises(InputError, match="allowed: signed"):
        attribute_many(
            tiny.build("llama"), tiny.tokenizer(), tiny.examples(2),
            reductions=("mean_of_abs",), settings=Pass(method="cubic"),
        )  # fmt: skip
    # A refusal that lists methods by what they can do lists this one too.
    refused = call(
        "score", folder, "--data", data, "--contrast", data, "--method", "fisher", "-o", output
    )
    assert "allowed: snip or integrated or cubic, signed" in refused.stderr
