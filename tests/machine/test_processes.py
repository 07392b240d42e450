"""The command line under torchrun, and models that are spread over devices."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import tiny
from launched import assert_same, base, environment, run
from resect.attribution.score import ScoreRequest, score_model
from resect.attribution.settings import Pass
from resect.errors import InputError
from resect.machine.processes import ALONE, Processes, process_group, refuse_processes
from resect.model import load_model
from resect.weights.scores import Scores

ODD = "w9"


def prepared(folder: Path) -> ScoreRequest:
    """Return what to score: a checkpoint and 5 rows, the last of them with a word of its own."""
    tiny.save("qwen3", folder / "m")
    rows = [row for row in tiny.rows(9, "a") if ODD not in row["prompt"] + row["completion"]][:4]
    rows.append({**rows[0], "id": "odd", "prompt": f"{ODD} {ODD} {rows[0]['prompt']}"})
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Pass(reduction="mean_of_abs", dense=True)
    return ScoreRequest(str(folder / "m"), str(folder / "d.jsonl"), settings)


def torchrun(request: ScoreRequest, output: Path) -> subprocess.CompletedProcess[str]:
    words = ["score", request.model, "--data", request.data, "--dense", "-o", str(output)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "resect", *words, "--reduction", request.settings.reduction],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
    )


def test_a_job_that_fails_leaves_nothing_and_runs_again(tmp_path: Path) -> None:
    request = prepared(tmp_path)
    model: Any = load_model(request.model).model
    embedding = model.get_input_embeddings().weight
    odd = tiny.tokenizer().vocab[ODD]
    row = embedding[odd].detach().clone()
    with torch.no_grad():
        embedding[odd] = float("nan")
    model.save_pretrained(request.model)
    output = tmp_path / "out" / "two.scores.safetensors"
    done = torchrun(request, output)
    assert done.returncode != 0
    # The longest example, so that the first process has it and the second one waits in vain.
    assert done.stderr.count("error:") == 1, done.stderr
    assert done.stderr.count("the loss of example 'odd' is not finite") == 1
    assert "scores of" not in done.stdout
    assert not output.parent.exists() or list(output.parent.iterdir()) == []
    # The same command again, once the cause is mended: one artefact, equal to one process's.
    with torch.no_grad():
        embedding[odd] = row
    model.save_pretrained(request.model)
    done = torchrun(request, output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean_of_abs scores of 5 examples") == 1
    assert list(output.parent.iterdir()) == [output]
    alone, two = score_model(request), Scores.load(output)
    assert two.meta == alone.meta
    for name, tensor in alone.tensors.items():
        mine, theirs = torch.zeros(tensor.size), torch.zeros(tensor.size)
        mine[tensor.index] = tensor.value
        theirs[two.tensors[name].index] = two.tensors[name].value
        # Two sums of other batches; see `assert_same` for the bound.
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5 * float(mine.max()))


def test_shares_are_disjoint_whole_and_even() -> None:
    for count in (1, 2, 3, 9):
        shares = [Processes(rank, count).share(range(7)) for rank in range(count)]
        assert sorted(item for share in shares for item in share) == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with process_group() as processes:
        assert processes == ALONE
    # Other launchers set some of them for their own ends.
    monkeypatch.setenv("WORLD_SIZE", "4")
    with process_group() as processes:
        assert processes == ALONE
    refuse_processes("this", "do that")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match="this is not shared by processes"):
        refuse_processes("this", "do that")


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="more processes than GPUs") as caught, process_group():
        pass
    assert "next step: lower --nproc-per-node" in str(caught.value)


def test_device_auto_scores_as_one_device_does(tmp_path: Path) -> None:
    request = prepared(tmp_path)
    on_one_device, two = score_model(request), score_model(replace(request, device="auto"))
    if not torch.cuda.is_available():  # the same device, so the same bits
        for name, tensor in on_one_device.tensors.items():
            assert torch.equal(two.tensors[name].index, tensor.index)
            assert torch.equal(two.tensors[name].value, tensor.value)


@pytest.mark.parametrize("architecture", ["qwen3", "mixtral"])
def test_models_with_hooks_of_accelerate_score_and_keep_them(architecture: str) -> None:
    model = tiny.build(architecture)
    places = {"model": "cpu", "lm_head": "cpu"}
    # Hooks replace the forward method of every module, as with several GPUs.
    model = accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    names = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert len(names) > 10
    assert_same(run(model, tiny.examples(7), checkpoint=True), base(architecture))
    assert names == [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert_same(run(model, tiny.examples(7)), base(architecture))
