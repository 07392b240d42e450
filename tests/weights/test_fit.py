"""Masks and scores stay with what they were made from: a hundred wrong pairs, and what is right."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from resect.attribution.score import ScoreRequest, score_model
from resect.attribution.settings import Pass
from resect.edit.checkpoint import cut_record, forced_of, prune_checkpoint, restore_checkpoint
from resect.edit.live import removed
from resect.errors import MismatchError
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.model import model_fingerprint, prunable_tensors, tokenizer_fingerprint
from resect.records import CausalModel
from resect.runs.config import parse_config
from resect.runs.run import _facts
from resect.runs.sets import Sets
from resect.runs.subject import Subjects
from resect.weights.fit import Prints, fitted
from resect.weights.mask import Mask
from resect.weights.scores import Scores
from resect.weights.select import select

Pair = tuple[str, Mapping[str, torch.Tensor], Prints, str]


def print_of(model: CausalModel) -> Prints:
    return Prints(model_fingerprint(model), tokenizer_fingerprint(tiny.tokenizer()))


@pytest.fixture(scope="module")
def mask() -> Mask:
    model = tiny.build("llama")
    prints = print_of(model)
    facts = {"model_fingerprint": prints.model, "tokenizer_fingerprint": prints.tokenizer}
    return Mask(tiny.cut(model, 0.2).tensors, facts)


def tuned(seed: int) -> Any:
    """Return a child of the base model after one step of training."""
    model = tiny.build("llama").train()
    ids = torch.randint(4, tiny.VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    return model.eval()


class Changed(NamedTuple):
    """A model in which one weight is another, and where."""

    model: CausalModel
    name: str
    position: int


def changed(mask: Mask, number: int, *, inside: bool) -> Changed:
    """Change one weight of the base model by the least possible; return where."""
    model = tiny.build("llama")
    weights = prunable_tensors(model)
    draw = torch.Generator().manual_seed(number)
    name = list(weights)[number % len(weights)]
    index = mask.tensors[name].index
    outside = torch.ones(weights[name].numel(), dtype=torch.bool)
    outside[index] = False
    places = index if inside else outside.nonzero()[:, 0]
    position = int(places[torch.randint(len(places), (1,), generator=draw)])
    flat = weights[name].detach().view(-1)
    with torch.no_grad():
        flat[position] = torch.nextafter(flat[position], torch.tensor(9.0))
    return Changed(model, name, position)


def wrong(mask: Mask) -> Iterator[Pair]:
    """Yield a kind, the model's tensors, its prints and what the message must name."""
    start = next(iter(mask.tensors))
    for seed in range(1, 21):
        model = tiny.build("llama", seed)
        yield "other seed", prunable_tensors(model), print_of(model), f"{start} has another value"
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = tiny.build("llama", dtype=dtype)
        # The values are those of the mask up to rounding, so it is the fingerprint that tells.
        yield "other dtype", prunable_tensors(model), print_of(model), "the model is not the one"
    for number in range(30):
        model, name, index = changed(mask, number, inside=True)
        words = f"{name} has another value than in the mask, flat index {index}\n"
        yield "one weight inside", prunable_tensors(model), print_of(model), words
    for number in range(10):
        model, _, _ = changed(mask, number, inside=False)
        words = "the model is not the one that the mask was made with"
        yield "one weight outside", prunable_tensors(model), print_of(model), words
    base = tiny.build("llama")
    for name in mask.tensors:
        weights = {f"{n}.old" if n == name else n: t for n, t in prunable_tensors(base).items()}
        yield "renamed", weights, print_of(base), f"no tensor {name}"
    for name in list(mask.tensors)[:5]:
        weights = prunable_tensors(base)
        weights = weights | {name: weights[name].reshape(-1, 1)}
        yield "reshaped", weights, print_of(base), f"{name} has another shape"
    for end in ("q_proj", "gate_proj", "down_proj"):
        # Shards in another order: the tensors of two layers have each other's names.
        weights = prunable_tensors(base)
        swapped_name, partner = [name for name in weights if end in name][:2]
        swapped = {**weights, swapped_name: weights[partner], partner: weights[swapped_name]}
        yield "permuted", swapped, print_of(base), f"{swapped_name} has another value"
    for seed in range(10):
        model = tuned(seed)
        yield "fine-tuned", prunable_tensors(model), print_of(model), f"{start} has another value"
    for architecture in ("gpt2", "bloom", "gpt_neox", "falcon", "phi3"):
        model = tiny.build(architecture)
        yield "architecture", prunable_tensors(model), print_of(model), "no tensor model.layers.0"
    for number in range(3):
        prints = replace(print_of(base), tokenizer=f"{number:016x}")
        yield "tokenizer", prunable_tensors(base), prints, "the tokenizer is not the one"


def test_a_hundred_wrong_pairs_are_refused_with_the_first_mismatch(mask: Mask) -> None:
    kinds: Counter[str] = Counter()
    for mismatch, weights, prints, words in wrong(mask):
        with pytest.raises(MismatchError) as caught:
            fitted(mask, weights, prints)
        assert words in f"{caught.value}", mismatch
        kinds[mismatch] += 1
        if mismatch not in {"renamed", "reshaped", "architecture"}:
            assert "add --force" in str(caught.value)
            assert words.split("\n")[0].split(",")[0] in fitted(
                mask, weights, prints, force=True
            ).meta["forced"].replace("\n", " ")
        else:
            with pytest.raises(MismatchError):  # places would have no meaning
                fitted(mask, weights, prints, force=True)
    assert kinds.total() >= 100, kinds
    # The right pair is none of them.
    base = tiny.build("llama")
    assert fitted(mask, prunable_tensors(base), print_of(base)) is mask


def test_the_same_tensors_in_other_files_are_no_mismatch(mask: Mask, tmp_path: Path) -> None:
    single = tiny.save("llama", tmp_path / "one")
    weights = load_file(single / "model.safetensors")
    many = tmp_path / "many"
    shutil.copytree(single, many)
    (many / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        chosen = {n: weights[n] for n in reversed(names) if where[n] == file}
        save_file(chosen, many / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (many / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    prune_checkpoint(single, mask, tmp_path / "cut-one")
    prune_checkpoint(many, mask, tmp_path / "cut-many")
    expected = load_file(tmp_path / "cut-one" / "model.safetensors")
    joined: dict[str, torch.Tensor] = {}
    for file in set(where.values()):
        joined |= load_file(tmp_path / "cut-many" / file)
    assert all(torch.equal(tensor, joined[name]) for name, tensor in expected.items())


def request(model: Path, data: Path, **changes: Any) -> Scores:
    return score_model(ScoreRequest(str(model), str(data), Pass(keep=0.3, **changes)))


def test_what_was_forced_is_in_everything_made_from_it(
    mask: Mask, inputs: Path, tmp_path: Path
) -> None:
    stranger = tiny.save("llama", tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="add --force"):
        prune_checkpoint(stranger, mask, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    prune_checkpoint(stranger, mask, tmp_path / "cut", force=True)
    forced = forced_of(tmp_path / "cut")
    assert "has another value than in the mask" in forced
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    entry = mask.tensors[next(iter(mask.tensors))]
    assert not weights[next(iter(mask.tensors))].view(-1)[entry.index].any()
    # Restoring would bring the values of another model.
    with pytest.raises(MismatchError, match="cut by force"):
        restore_checkpoint(tmp_path / "cut", mask, tmp_path / "back")
    restore_checkpoint(tmp_path / "cut", mask, tmp_path / "back", force=True)
    assert forced in forced_of(tmp_path / "back")
    # Scores, a mask, a second checkpoint, an evaluation, a run.
    harm, benign = inputs / "harm.jsonl", inputs / "benign.jsonl"
    request(tmp_path / "cut", harm).save(tmp_path / "a.scores.safetensors")
    target = Scores.load(tmp_path / "a.scores.safetensors")
    assert target.meta.forced == forced
    preserve = request(tmp_path / "cut", benign, reduction="mean_of_abs")
    second_mask = select(target, preserve, q=0.1, p=0)
    assert second_mask.meta["forced"] == forced
    prune_checkpoint(tmp_path / "cut", second_mask, tmp_path / "twice")
    assert forced_of(tmp_path / "twice") == forced
    record = cut_record(tmp_path / "twice")
    assert record is not None
    assert record["before"] is not None
    assert record["before"]["mask"] == mask.hash
    second_mask.save(tmp_path / "b.mask.safetensors")
    evaluation = EvalRequest(
        str(tmp_path / "cut"), ("likelihood",), (str(harm),), mask=tmp_path / "b.mask.safetensors"
    )
    evaluate_model(evaluation, tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["forced"] == forced
    values = {
        "name": "forced",
        "models": {"aligned": str(tmp_path / "cut")},
        "data": {"harm": str(harm), "benign": str(benign)},
        "targets": {"generation": {"data": "harm"}},
        "preserve": {"data": "benign"},
        "evaluation": {"probes": {"generation": "harm", "utility": "benign"}},
        "studies": {"compactness": {"fractions": [0.1]}},
    }
    config = parse_config(values, "test")
    Subjects(config, tmp_path / "run").load("aligned", 0)
    assert _facts(config, tmp_path / "run", None)["forced"] == forced


def test_forced_scores_and_evaluations_say_so(inputs: Path, tmp_path: Path) -> None:
    stranger = tiny.save("llama", tmp_path / "other", seed=1)
    target = request(inputs / "m", inputs / "harm.jsonl")
    preserve = request(stranger, inputs / "benign.jsonl", reduction="mean_of_abs")
    with pytest.raises(MismatchError, match="different models"):
        select(target, preserve, q=0.1, p=0.1)
    mask = select(target, preserve, q=0.1, p=0.1, force=True)
    assert "scores of different models" in mask.meta["forced"]
    mask.save(tmp_path / "a.mask.safetensors")
    evaluation = EvalRequest(
        str(stranger), ("likelihood",), (str(inputs / "harm.jsonl"),),
        mask=tmp_path / "a.mask.safetensors",
    )  # fmt: skip
    with pytest.raises(MismatchError, match="has another value"):
        evaluate_model(evaluation, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    evaluate_model(replace(evaluation, force=True), tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))
    assert "scores of different models" in results["provenance"]["forced"]
    assert "has another value than in the mask" in results["provenance"]["forced"]
    # In memory as well, nothing is cut that was not asked for.
    model = tiny.build("llama", 1)
    with pytest.raises(MismatchError), removed(model, mask):
        pass


def test_a_folder_is_restored_with_its_own_mask_only(mask: Mask, tmp_path: Path) -> None:
    source = tiny.save("llama", tmp_path / "m")
    for alpha in (0.0, 0.5):
        cut = tmp_path / f"cut-{alpha}"
        prune_checkpoint(source, mask, cut, alpha=alpha)
        with pytest.raises(MismatchError, match="cut with another mask"):
            restore_checkpoint(cut, tiny.cut(tiny.build("llama"), 0.1, 5), tmp_path / "back")
        (cut / "resect.json").unlink()
        if alpha:
            with pytest.raises(MismatchError, match="not as this mask cuts it"):
                restore_checkpoint(cut, mask, tmp_path / "back")
        else:
            restore_checkpoint(cut, mask, tmp_path / "whole")
            assert forced_of(tmp_path / "whole") == ""


def test_a_run_goes_on_with_the_model_and_data_that_it_began_with(
    inputs: Path, tmp_path: Path
) -> None:
    model = tiny.save("llama", tmp_path / "m")
    harm = tmp_path / "harm.jsonl"
    shutil.copy(inputs / "harm.jsonl", harm)
    values = {
        "name": "swapped",
        "models": {"aligned": str(model)},
        "data": {"harm": str(harm)},
        "targets": {"generation": {"data": "harm"}},
        "preserve": {"data": "harm"},
        "evaluation": {"probes": {"generation": "harm", "utility": "harm"}},
        "studies": {"compactness": {"fractions": [0.1]}},
    }
    config = parse_config(values, "test")
    Subjects(config, tmp_path / "run").load("aligned", 0)
    Sets(config, tmp_path / "run").named("harm", 0)
    Sets(config, tmp_path / "run").named("harm", 0)
    harm.write_text(harm.read_text(encoding="utf-8").replace("w1 ", "w2 "), encoding="utf-8")
    with pytest.raises(MismatchError, match="the data set 'harm' is not the one"):
        Sets(config, tmp_path / "run").named("harm", 0)
    tiny.save("llama", model, seed=1)  # of the same size, in the same place
    with pytest.raises(MismatchError, match="the model 'aligned' is not the one"):
        Subjects(config, tmp_path / "run").load("aligned", 0)
