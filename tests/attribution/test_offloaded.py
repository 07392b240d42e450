"""A model that is read block by block gets the scores that it has in memory, in less memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from resect.attribution.engine import attribute_many
from resect.attribution.offloaded import attribute_streamed
from resect.attribution.settings import Origin, Pass
from resect.errors import CoverageError, InputError
from resect.model import load_model, model_fingerprint
from resect.model.on_disk import open_shelf
from resect.records import Encoded
from resect.weights.scores import Scores, TensorScores

EXAMPLES = tiny.examples(5)


def _dense(scores: TensorScores) -> torch.Tensor:
    dense = torch.full(scores.shape, torch.nan).reshape(-1)
    dense[scores.index] = scores.value
    return dense


def _same(streamed: dict[str, Scores], memory: dict[str, Scores], tolerance: float) -> None:
    assert streamed.keys() == memory.keys()
    for name, scores in memory.items():
        assert list(streamed[name].tensors) == list(scores.tensors)
        for tensor_name, expected in scores.tensors.items():
            tensor = streamed[name].tensors[tensor_name]
            torch.testing.assert_close(
                _dense(tensor), _dense(expected), rtol=tolerance, atol=tolerance
            )
        assert streamed[name].meta.model_fingerprint == scores.meta.model_fingerprint


@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "falcon", "qwen3_moe", "mixtral"],
)
def test_scores_are_those_of_the_engine_in_memory(architecture: str, tmp_path: Path) -> None:
    folder = tiny.save(architecture, tmp_path / "model")
    settings = Pass(dense=True, batch_size=2)
    reductions = ("signed", "mean_of_abs")
    model, tokenizer = load_model(folder)
    memory = attribute_many(model, tokenizer, EXAMPLES, reductions=reductions, settings=settings)
    shelf = open_shelf(folder)
    streamed = attribute_streamed(shelf, EXAMPLES, reductions=reductions, settings=settings)
    _same(streamed, memory, 1e-5)
    # Afterwards nothing of a block is in memory.
    block = next(shelf.blocks[0].parameters())
    assert block.untyped_storage().size() == 0


@pytest.mark.parametrize("method", ["wanda", "fisher", "magnitude", "random"])
def test_other_methods_and_single_examples(method: str, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", dtype=torch.bfloat16, max_shard_size="20KB")
    model, tokenizer = load_model(folder)
    settings, origin = Pass(method=method, dense=True, batch_size=1), Origin(seed=3)
    memory = attribute_many(model, tokenizer, EXAMPLES, settings=settings, origin=origin)
    streamed = attribute_streamed(open_shelf(folder), EXAMPLES, settings=settings, origin=origin)
    _same(streamed, memory, 1e-5)
    assert open_shelf(folder).fingerprint() == model_fingerprint(model)


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    shelf = open_shelf(folder)
    with pytest.raises(InputError, match="one pass"):
        attribute_streamed(shelf, EXAMPLES, settings=Pass(method="integrated"))
    # Something between two blocks: the decoder scales what the second one gets.
    block = shelf.blocks[0]
    plain = type(block).__call__
    members = {"__call__": lambda self, *args, **kwargs: 2 * plain(self, *args, **kwargs)}
    block.__class__ = type("Scaling", (type(block),), members)
    with pytest.raises(CoverageError, match="between two blocks"):
        attribute_streamed(shelf, EXAMPLES)


def test_a_head_that_differs_from_what_the_configuration_ties_it_to_is_refused(
    tmp_path: Path,
) -> None:
    # Loading goes by the values: it ties two equal tensors, and keeps two that differ apart.
    folder = tiny.save("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    shelf = open_shelf(folder)
    model, _ = load_model(folder)
    layer = model.get_output_embeddings()
    assert layer is not None
    assert layer.weight is model.get_input_embeddings().weight
    assert shelf.fingerprint() == model_fingerprint(model)
    head[0, 0] += 1
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"(?s)lm_head\.weight.*tie_word_embeddings"):
        open_shelf(folder)
    settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(settings))
    assert open_shelf(folder).fingerprint() == model_fingerprint(load_model(folder)[0])


LIMITED = [Encoded(f"e{n}", tuple(range(4 + n, 20 + n)), 4) for n in range(4)]


def test_a_deep_model_in_shards_has_the_same_ranking(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    large = tmp_path / "large"
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=24,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(large, max_shard_size="1MB")
    tiny.tokenizer().save_pretrained(large)
    settings = Pass(keep=1e-3, batch_size=2)
    streamed = attribute_streamed(open_shelf(large), LIMITED, settings=settings)["signed"]
    expected = attribute_many(*load_model(large), LIMITED, settings=settings)["signed"]
    assert streamed.meta.model_fingerprint == expected.meta.model_fingerprint
    shared, either = 0, 0
    for name, scores in expected.tensors.items():
        in_memory = set(scores.index.tolist())
        from_disk = set(streamed.tensors[name].index.tolist())
        shared, either = shared + len(in_memory & from_disk), either + len(in_memory | from_disk)
    # Only what is as close as rounding to the edge of the ranking may differ.
    assert shared > 0.999 * either


def test_what_a_class_leaves_in_float32_makes_no_other_fingerprint(tmp_path: Path) -> None:
    folder = tiny.save("gpt_oss", tmp_path / "model", dtype=torch.float16)
    loaded = [load_model(folder, dtype=dtype).model for dtype in (None, "float16", "float32")]
    assert len({parameter.dtype for parameter in loaded[0].parameters()}) == 2
    prints = {model_fingerprint(model) for model in loaded}
    assert prints == {open_shelf(folder).fingerprint()}
