"""An engine is started, asked and cut in a process of its own: with a stand-in of vLLM in it.

The engine itself is asked in `tests/integrations/test_vllm_engine.py`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from resect.errors import InputError, MismatchError, ResectError
from resect.evaluation import engine
from resect.evaluation.engine import EngineBackend, is_engine, parse_engine
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.files.writing import write_text
from resect.model import load_model

# As vLLM's `LLM`: token ids with the one that ended the reply, weights loaded again with a patch.
STAND_IN = """
from types import SimpleNamespace

import torch

from resect.evaluation.decode import GenerationSettings, generate
from resect.integrations.vllm_worker import read_patch
from resect.model import load_model, prunable_tensors

__version__ = "stand-in"
SamplingParams = SimpleNamespace


class LLM:
    def __init__(self, model, dtype, **options):
        assert options.pop("worker_extension_cls").startswith("resect.integrations.vllm_worker.")
        assert options == {"enforce_eager": True, "disable_log_stats": True, "seats": 2}
        self.model, self.tokenizer = load_model(model, device="cpu")
        assert dtype == str(self.model.dtype).removeprefix("torch.")
        print("vLLM writes lines of its own")

    def generate(self, prompts, sampling, use_tqdm):
        return [self.output(one["prompt_token_ids"], how) for one, how in zip(prompts, sampling)]

    def output(self, ids, sampling):
        assert sampling.temperature == 0 and sampling.stop_token_ids == [1]
        reply = generate(
            self.model, self.tokenizer, [ids], GenerationSettings(sampling.max_tokens)
        )[0]
        finish = "length" if len(reply) == sampling.max_tokens else "stop"
        token_ids = reply + [1] * (finish == "stop")
        said = SimpleNamespace(
            text="", token_ids=token_ids, finish_reason=finish, stop_reason=None
        )
        return SimpleNamespace(outputs=[said])

    def collective_rpc(self, method, args):
        assert method == "load_with_patch"
        entries = read_patch(*args).entries
        tensors = prunable_tensors(self.model)
        with torch.no_grad():
            for entry in entries:
                tensors[entry.name].view(-1)[entry.indices.long()] = entry.values
        return [{"loaded": len(entries)}]

    def reset_prefix_cache(self):
        return True
"""


def request(root: Path, **changes: Any) -> EvalRequest:
    model = root / "model"
    if not model.is_dir():
        tiny.save("llama", model)
        tiny.cut(load_model(model, device="cpu").model, 0.1).save(root / "m.mask.safetensors")
    write_text(root / "h.jsonl", "\n".join(json.dumps(row) for row in tiny.rows(5, "h")))
    usual: dict[str, Any] = {"attack": "prefill:2", "max_new_tokens": 12, "judges": ("keyword",)}
    usual |= {"mask": root / "m.mask.safetensors", "probes": ("generation", "refusal")}
    return EvalRequest(model=str(model), data=(str(root / "h.jsonl"),), **(usual | changes))


def write_vllm(root: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a package of that name where the child looks, and return the backend."""
    (root / "there").mkdir()
    write_text(root / "there" / "vllm.py", text)
    monkeypatch.setenv("PYTHONPATH", str(root / "there"))
    return f"vllm:{sys.executable}#seats=2"


def test_an_engine_replies_as_the_model_in_memory_intact_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_model(request(tmp_path), tmp_path / "memory")
    backend = write_vllm(tmp_path, STAND_IN, monkeypatch)
    evaluate_model(request(tmp_path, backend=backend), tmp_path / "engine")
    texts = []
    for variant in ("intact", "cut"):
        ours, theirs = (
            read_parquet(tmp_path / name / "records" / f"{variant}.parquet")
            for name in ("memory", "engine")
        )
        for name in ("example_id", "text", "finish", "prefix", "attack", "repetition", "outcome"):
            assert [row[name] for row in theirs] == [row[name] for row in ours], name
        texts.append([row["text"] for row in theirs])
    assert texts[0] != texts[1]
    ours, theirs = (
        read_json(tmp_path / name / "results.json")["provenance"] for name in ("memory", "engine")
    )
    for name in ("mask", "forced", "model_cut", "tokenizer_fingerprint", "data"):
        assert theirs[name] == ours[name], name
    assert theirs["engine"].items() >= {"vllm": "stand-in", "dtype": "float32", "seats": 2}.items()


def test_an_engine_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = write_vllm(tmp_path, "raise RuntimeError('no room for keys')", monkeypatch)
    with pytest.raises(InputError, match=r"has ended[\s\S]*RuntimeError: no room for keys"):
        evaluate_model(request(tmp_path, backend=backend), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_an_engine_cannot_do_is_said_before_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "started", lambda *_: pytest.fail("an engine was started"))

    def refused(match: str, **changes: Any) -> None:
        asked = request(tmp_path, **({"backend": f"vllm:{sys.executable}"} | changes))
        with pytest.raises(ResectError, match=match):
            evaluate_model(asked, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("cannot be attacked", attack="finetune")
    refused("distributions", probes=("likelihood",))
    refused("shorten the prefill", attack="prefill:9")
    other = tiny.cut(tiny.build("llama", seed=1), 0.1)
    other.save(tmp_path / "other.mask.safetensors")
    refused("another value than in the mask", mask=tmp_path / "other.mask.safetensors")
    with pytest.raises(MismatchError, match="no tensor"):
        tiny.cut(tiny.build("gpt2"), 0.1).save(tmp_path / "gpt2.mask.safetensors")
        evaluate_model(
            request(
                tmp_path,
                backend=f"vllm:{sys.executable}",
                mask=tmp_path / "gpt2.mask.safetensors",
            ),
            tmp_path / "out",
        )


def test_backends_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.executable
    monkeypatch.delenv(engine.PYTHON, raising=False)
    assert [is_engine(text) for text in ("vllm", f"vllm:{here}", "vllm#a=1")] == [True] * 3
    assert not any(is_engine(text) for text in ("hf", "vllm-cpu", "openai:http://127.0.0.1/vllm"))
    options = {"tensor_parallel_size": 2, "dtype": "bfloat16", "a": True}
    text = f"vllm:{here}#tensor_parallel_size=2,dtype=bfloat16,a=true"
    assert parse_engine(text) == EngineBackend(here, options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=f"not installed beside resect[\\s\\S]*{engine.PYTHON}"):
        parse_engine("vllm")
    monkeypatch.setenv(engine.PYTHON, here)
    assert parse_engine("vllm#a=1") == EngineBackend(here, {"a": 1})
    with pytest.raises(InputError, match="no such interpreter"):
        parse_engine("vllm:/nowhere/python")
    with pytest.raises(InputError, match="cannot read an option"):
        parse_engine(f"vllm:{here}#eager")
