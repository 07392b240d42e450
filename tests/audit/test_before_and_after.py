"""An audit compares all tensors, and names what is not the same on both sides."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import tiny
from command_line import call, write
from resect.audit import AuditRequest, audit_models, load_tuned
from resect.audit.effects import Models, effects_of
from resect.audit.loading import Tuned, open_tuned, shared_tokenizer
from resect.audit.outside import outside_of, outside_sentences
from resect.data.load import load_data
from resect.errors import InputError, MismatchError
from resect.model import LoadedModel
from resect.weights.mask import Mask

WORDS = ("--q", "0.05", "--p", "0.05", "--skip", "2", "--max-new-tokens", "4", "--matched", "2")


def sets(folder: Path, count: int = 5) -> tuple[str, ...]:
    """Write two sets, and return the options that name them."""
    options = []
    for option, name, prefix in (("--target", "insults", "h"), ("--preserve", "talk", "b")):
        rows = tiny.rows(6, prefix, split="calibration") + tiny.rows(
            count, f"{prefix}e", split="evaluation"
        )
        options += [option, str(write(folder / f"{name}.jsonl", rows))]
    return tuple(options)


def untied(seed: int = 0) -> Any:
    """Return a model whose head is a tensor of its own, with norms that are not all ones."""
    return tiny.build("qwen3", seed)


def pushed(model: Any, *words: str, size: float = 0.1) -> Any:
    """Return a copy in which tensors with one of these words in their names are moved."""
    changed = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if any(word in name for word in words):
                parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return changed


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("embed_tokens",), {"embeddings"}),
        (("lm_head",), {"output head"}),
        (("norm",), {"norm"}),
        (("embed_tokens", "lm_head"), {"embeddings", "output head"}),
        (("q_proj", "down_proj"), set()),  # prunable: the other comparison sees these
    ],
)
def test_every_tensor_outside_of_the_prunable_weights_is_compared(
    words: tuple[str, ...], kinds: set[str]
) -> None:
    model = untied()
    tuned = pushed(model, *words)
    rows = outside_of(model, tuned)
    parameters = dict(model.named_parameters())
    prunable = {name for name in parameters if "_proj" in name}
    assert {row.name for row in rows} == set(parameters) - prunable
    assert {row.kind for row in rows if row.changed} == kinds
    after = dict(tuned.named_parameters())
    for row in rows:
        delta = (after[row.name] - parameters[row.name]).detach().double()
        assert row.changed == int((delta != 0).sum())
        assert row.energy == pytest.approx(float(delta.square().sum()), rel=1e-5)
        size = float(parameters[row.name].detach().double().norm())
        assert row.relative == pytest.approx(float(delta.norm()) / size, rel=1e-5)
    named = " ".join(outside_sentences(rows))
    assert all((row.name in named) == bool(row.changed) for row in rows if row.kind != "norm")


def test_tied_weights_are_compared_once_and_more_rows_are_counted() -> None:
    model = tiny.build("llama")
    tuned = pushed(model, "embed_tokens")
    changed = [row for row in outside_of(model, tuned) if row.changed]
    assert [row.name for row in changed] == ["model.embed_tokens.weight"]
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(tiny.VOCABULARY + 3, mean_resizing=False)
    (row,) = [row for row in outside_of(model, grown) if row.differs]
    assert (row.rows, row.changed, row.size) == (3, 0, tiny.VOCABULARY * 16)
    assert "3 rows more" in " ".join(outside_sentences([row]))


def test_what_changed_elsewhere_is_tried_alone_and_put_back(tmp_path: Path) -> None:
    model, tokenizer = untied(), tiny.tokenizer()
    tuned = pushed(model, "embed_tokens", "norm", size=1.0)
    options = sets(tmp_path)
    data = {"target": load_data(options[1]), "preserve": load_data(options[3])}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    request = AuditRequest("", "", batch_size=2)
    effects = effects_of(request, Models(model, tuned, tokenizer), Mask({}, {}), [], data)
    assert effects is not None
    assert effects.elsewhere is not None
    # Nothing else changed, so that is the whole change.
    assert effects.elsewhere.value == pytest.approx(effects.whole.value, abs=1e-5)
    assert abs(effects.whole.value or 0.0) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_audit_names_what_changed_outside_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resect.cli.audit.SECONDS_BETWEEN_NOTES", 0.0)
    model = untied()
    for name, variant in (("base", model), ("tuned", pushed(model, "embed_tokens", "lm_head"))):
        variant.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    words = ["audit", tmp_path / "base", tmp_path / "tuned", *sets(tmp_path), *WORDS]
    done = call(*words, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    named = " ".join(content["notes"])
    assert "model.embed_tokens.weight (embeddings, 1,024 of 1,024 values" in named
    assert "lm_head.weight (output head" in named
    assert "alone, that changes the loss on insults" in named
    assert "model.embed_tokens.weight" in done.stderr
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "Changed outside of the prunable weights" in page
    assert "lm_head.weight" in page
    # Progress is told where there is no terminal to draw a bar on.
    for stage in ("loading", "matched set 2 of 2", "asking the tuned model prefilled: insults"):
        assert stage in done.stderr
    assert done.stderr.count("drawing matched set") == 2
    assert len(content["effects"]["matched"]) == 2
    assert "undecided" in done.stdout
    # A gate is not passed by what could not be decided.
    assert call(*words, "--fail-on", "touched", "-o", tmp_path / "gate").returncode == 4


def test_progress_counts_up_to_its_total(tmp_path: Path) -> None:
    base = tiny.save("qwen3", tmp_path / "base")
    options = sets(tmp_path)
    request = AuditRequest(
        str(base), str(base), target=options[1], preserve=options[3],
        q=0.05, p=0.05, max_new_tokens=2, controls=2,
    )  # fmt: skip
    seen: list[tuple[int, int]] = []
    stages: list[str] = []
    audit_models(request, tmp_path / "out", lambda *counts: seen.append(counts), stages.append)
    totals = {total for _, total in seen}
    assert len(totals) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert len(stages) == len(seen) - 1
    assert len(stages) >= seen[-1][1] - 1  # the change outside of blocks alone is not always tried


def without_template(folder: Path) -> Path:
    """Take the chat template of a checkpoint folder away."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = None
    for path in folder.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tuned_folder_without_a_tokenizer_is_audited(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "base")
    tiny.build("llama").save_pretrained(tmp_path / "tuned")
    done = call("audit", base, tmp_path / "tuned", *sets(tmp_path), *WORDS, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the tuned folder has no tokenizer" in done.stderr


@pytest.mark.parametrize("bare", ["base", "tuned"])
def test_a_side_without_a_chat_template_is_named(bare: str, tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        folder = tiny.save("llama", tmp_path / name)
        if name == bare:
            without_template(folder)
    words = [tmp_path / "base", tmp_path / "tuned", *sets(tmp_path), *WORDS]
    done = call("audit", *words, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert ("the base model has no chat template" in done.stderr) == (bare == "base")
    assert ("the tuned model has no chat template" in done.stderr) == (bare == "tuned")
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    # Both were asked in the same words.
    assert all(row["before"] == row["after"] for row in content["measured"])


def test_one_tokenizer_for_both_and_every_difference_is_named() -> None:
    model = tiny.build("llama")
    plain = tiny.tokenizer()

    def compared(tokenizer: Any) -> Any:
        return shared_tokenizer(LoadedModel(model, plain), Tuned(model, tokenizer))

    assert compared(plain) == (plain, ())
    other = copy.deepcopy(plain)
    other.chat_template = "{{ messages[0]['content'] }}"
    shared = compared(other)
    assert shared.tokenizer is plain
    assert "another chat template" in shared.notes[0]
    more = copy.deepcopy(plain)
    more.add_tokens(["newword", "newer"])
    shared = compared(more)
    assert shared.tokenizer is plain
    assert "2 tokens that the base model's has not: 'newword', 'newer'" in shared.notes[0]
    twisted = copy.deepcopy(plain)
    backend = json.loads(twisted.backend_tokenizer.to_str())
    words = backend["model"]["vocab"]
    words["w3"], words["w4"] = words["w4"], words["w3"]
    renumbered = type(plain)(
        tokenizer_object=type(plain.backend_tokenizer).from_str(json.dumps(backend))
    )
    with pytest.raises(MismatchError, match="number their tokens differently"):
        compared(renumbered)


def grown_adapter(folder: Path, *, head: bool) -> Any:
    """Save an adapter that was trained with three tokens more, and return the merged model."""
    model = untied()
    model.resize_token_embeddings(tiny.VOCABULARY + 3, mean_resizing=False)
    saved = ["embed_tokens", "lm_head"] if head else ["embed_tokens"]
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False,
                        modules_to_save=saved, task_type="CAUSAL_LM"),
    )  # fmt: skip
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.merge_and_unload()


def test_an_adapter_with_a_grown_vocabulary_is_put_on_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    untied().save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    merged = grown_adapter(tmp_path / "adapter", head=True)
    loaded = load_tuned(str(base), str(tmp_path / "adapter"))
    assert all(
        torch.equal(value, dict(loaded.named_parameters())[name])
        for name, value in merged.named_parameters()
    )
    words = [base, tmp_path / "adapter", *sets(tmp_path), *WORDS, "-o", tmp_path / "out"]
    done = call("audit", *words)
    assert done.returncode == 0, done.stderr
    assert "3 rows more" in done.stderr
    # Rows that no file holds would be random numbers.
    grown_adapter(tmp_path / "half", head=False)
    with pytest.raises(InputError, match="no rows for them in lm_head"):
        load_tuned(str(base), str(tmp_path / "half"))


def named_adapter(folder: Path, base: str) -> Path:
    """Save an adapter that names a base."""
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    worn = peft.get_peft_model(tiny.build("llama"), lora)
    worn.peft_config["default"].base_model_name_or_path = base
    worn.save_pretrained(str(folder))
    return folder


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, other = tiny.save("llama", tmp_path / "base"), tmp_path / "other"
    tiny.build("llama", seed=5).save_pretrained(str(other))
    adapter = named_adapter(tmp_path / "a", str(other))
    with pytest.raises(MismatchError, match="trained on another base") as error:
        load_tuned(str(base), str(adapter))
    assert str(other) in str(error.value)
    assert "next step" in str(error.value)
    # What differs by the rounding of a dtype, or by a cut, is the same base.
    rounded = tmp_path / "rounded"
    tiny.build("llama", dtype=torch.bfloat16).save_pretrained(str(rounded))
    model = tiny.build("llama")
    model.get_parameter("model.layers.0.mlp.up_proj.weight").data[0, :5] = 0
    model.save_pretrained(str(tmp_path / "cut"))
    tiny.tokenizer().save_pretrained(str(tmp_path / "cut"))
    for place, named in ((base, rounded), (tmp_path / "cut", base), (base, base)):
        assert open_tuned(str(place), str(named_adapter(tmp_path / "b", str(named)))).notes == ()


@pytest.mark.parametrize(
    ("named", "said"), [("owner/other", True), ("owner/base", False), ("/gone/base/", False)]
)
def test_a_base_that_is_not_here_is_named_where_it_may_be_another(
    named: str, said: bool, tmp_path: Path
) -> None:
    base = tiny.save("llama", tmp_path / "base")
    notes = open_tuned(str(base), str(named_adapter(tmp_path / "a", named))).notes
    assert (len(notes) == 1 and named in notes[0]) == said
