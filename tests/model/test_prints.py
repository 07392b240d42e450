"""A fingerprint sees every weight: a cut checkpoint is never taken for the intact one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from resect.attribution.score import ScoreRequest, score_model
from resect.attribution.settings import Pass
from resect.edit.checkpoint import prune_checkpoint
from resect.errors import MismatchError
from resect.files.origin import same_print
from resect.model import load_model, model_fingerprint, prunable_tensors
from resect.model.on_disk import open_shelf
from resect.model.prints import PIECE, _factors, fingerprint_of, sums_of
from resect.runs.config import parse_config
from resect.runs.subject import Subjects
from resect.weights.fit import Prints, fitted
from resect.weights.mask import Mask, MaskTensor
from resect.weights.select import select


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a model with tensors of 16,384 weights, of which a sample is every fourth."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "tie_word_embeddings": True}
    values = tiny.configuration("llama").to_dict() | sizes | {"head_dim": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()


def cut_of(model: Any, *places: int) -> Mask:
    """Return a mask of a few weights of the first layer."""
    name, weight = next(iter(prunable_tensors(model).items()))
    index = torch.tensor(places)
    values = weight.detach().view(-1)[index]
    entry = MaskTensor(
        tuple(weight.shape), index, values, torch.zeros(len(places), dtype=torch.int8)
    )
    return Mask({name: entry}, {"model_fingerprint": model_fingerprint(model)})


class Saved:
    """A checkpoint, and the same one with two of its weights cut by `resect prune`."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.intact, self.cut = folder / "intact", folder / "cut"
        model.save_pretrained(self.intact)
        tiny.tokenizer().save_pretrained(self.intact)
        prune_checkpoint(self.intact, cut_of(model, 1, 2), self.cut)


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Saved:
    return Saved(model, tmp_path)


def test_two_cut_weights_make_another_model(model: Any, saved: Saved) -> None:
    intact, cut = (load_model(place).model for place in (saved.intact, saved.cut))
    prints = [model_fingerprint(each) for each in (intact, cut)]
    assert prints[0] == model_fingerprint(model)
    assert prints[0] != prints[1]
    # A sample, which earlier versions took, does not see it.
    assert prints[0][:16] == prints[1][:16]
    assert [open_shelf(place).fingerprint() for place in (saved.intact, saved.cut)] == prints
    # A mask that lies elsewhere does not fit the cut model.
    mask = cut_of(model, 5)
    assert fitted(mask, prunable_tensors(intact), Prints(prints[0])) is mask
    with pytest.raises(MismatchError, match="the model is not the one that the mask was made with"):
        fitted(mask, prunable_tensors(cut), Prints(prints[1]))
    with pytest.raises(MismatchError, match="different models"):
        mask.union(Mask(cut_of(model, 7).tensors, {"model_fingerprint": prints[1]}))


def test_scores_of_the_intact_and_of_the_cut_model_are_not_subtracted(
    saved: Saved, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in tiny.rows(4, "h", split="calibration")]
    data.write_text("\n".join(lines), encoding="utf-8")
    target, preserve = (
        score_model(ScoreRequest(str(place), str(data), Pass(keep=0.3)))
        for place in (saved.intact, saved.cut)
    )
    with pytest.raises(MismatchError, match="the scores belong to different models"):
        select(target, preserve, q=0.1, p=0.1)


def test_a_run_does_not_go_on_with_the_cut_model(saved: Saved, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(saved.intact, place)
    values = {
        "name": "cut meanwhile",
        "models": {"aligned": str(place)},
        "data": {"harm": "harm.jsonl"},
        "targets": {"generation": {"data": "harm"}},
        "preserve": {"data": "harm"},
        "evaluation": {"probes": {"generation": "harm", "utility": "harm"}},
        "studies": {"compactness": {"fractions": [0.1]}},
    }
    config = parse_config(values, "test")
    Subjects(config, tmp_path / "run").load("aligned", 0)
    shutil.rmtree(place)
    shutil.copytree(saved.cut, place)
    with pytest.raises(MismatchError, match="the model 'aligned' is not the one"):
        Subjects(config, tmp_path / "run").load("aligned", 0)


def test_prints_of_earlier_versions_are_compared_as_far_as_they_go() -> None:
    new, old = "0123456789abcdef" + 16 * "7", "0123456789abcdef"
    assert same_print(new, new)
    assert same_print(old, old)
    assert same_print(new, old)
    assert same_print(old, new)
    assert not same_print(new, old + 16 * "8")
    assert not same_print(new, "1" + old[1:])
    assert not same_print(new, "")
    assert not same_print(new, "0")
    assert not same_print(old, "0")


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 3, 4, 1000])
def test_sums_are_those_of_python_integers(size: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(size)
    flat = torch.randint(0, 255, (size,), generator=draw).to(dtype)
    content = bytes(flat.view(torch.uint8).tolist()) if size else b""
    factors = _factors().tolist()
    total = 0
    for number, start in enumerate(range(0, len(content), 4)):
        word = int.from_bytes(content[start : start + 4].ljust(4, b"\0"), "little", signed=True)
        total += word * factors[number]
    expected = (total + 2**63) % 2**64 - 2**63
    assert sums_of(flat).tolist() == [expected]


def test_pieces_and_views_do_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    long = torch.randn(2 * PIECE + 5, generator=draw)
    parts = (long[:PIECE], long[PIECE : 2 * PIECE], long[2 * PIECE :])
    assert sums_of(long).tolist() == [sums_of(part).item() for part in parts]
    halves = torch.randn(9, generator=draw).bfloat16()
    # One that starts in the middle of an integer of 32 bits, and one whose values lie apart.
    assert torch.equal(sums_of(halves[1:]), sums_of(halves[1:].clone()))
    apart = torch.stack([long[:10], long[10:20]], 1)
    assert torch.equal(sums_of(apart[:, 0]), sums_of(long[:10]))
    assert bool((_factors() % 2 == 1).all())


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_every_weight_counts_and_so_does_its_place(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 8000, generator=draw).to(dtype)
    before = fingerprint_of([("w", weight)])
    prints = {before}
    for _ in range(20):
        position = int(torch.randint(weight.numel(), (1,), generator=draw))
        edited = weight.clone()
        edited.view(-1)[position] = 0
        prints.add(fingerprint_of([("w", edited)]))
    swapped = weight.clone()
    swapped.view(-1)[[1, 3]] = weight.view(-1)[[3, 1]]
    prints |= {fingerprint_of([("w", swapped)]), fingerprint_of([("v", weight)])}
    assert len(prints) == 23
    assert fingerprint_of([("w", weight.clone())]) == before
