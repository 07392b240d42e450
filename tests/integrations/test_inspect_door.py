"""The Inspect provider: each thing it does otherwise than Inspect's own, and equal numbers."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    get_model,
)
from inspect_ai.model._providers.hf import HuggingFaceAPI
from inspect_ai.scorer import exact
from inspect_ai.solver import generate as solve

import resect.integrations._inspect_registry
import tiny
from resect.data.encode import encode_prompt
from resect.edit.live import removed
from resect.errors import MismatchError
from resect.evaluation.decode import GenerationSettings, generate
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.files.tables import read_parquet
from resect.integrations.inspect_model import ResectAPI
from resect.records import Example

ROOT = Path(__file__).parents[2]
TOKENS = 6
ROWS = tiny.rows(6, "q")
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

@task
def local(data: str) -> Task:
    return Task(json_dataset(data, FieldSpec(input="prompt", target="completion")),
                solver=generate(), scorer=exact())
"""


def in_memory(model: Any, tokenizer: Any = None, **options: Any) -> Model:
    arguments = {"hf_model": model, "hf_tokenizer": tokenizer or tiny.tokenizer()} | options
    return get_model("resect/tiny", memoize=False, **arguments)


def ask(model: Model, samples: list[Sample], folder: Path, **config: Any) -> EvalLog:
    log = evaluate(
        Task(MemoryDataset(samples), solver=solve(), scorer=exact()),
        model=model, log_dir=str(folder), display="none", max_tokens=TOKENS,
        max_connections=len(samples), **config,
    )[0]  # fmt: skip
    assert log.status == "success", log.error
    return log


def texts(log: EvalLog) -> list[str]:
    return [sample.output.completion for sample in log.samples or []]


def plain() -> list[Sample]:
    return [Sample(id=row["id"], input=row["prompt"], target=row["completion"]) for row in ROWS]


def expected(model: Any, prefix: str | None = None, mask: Any = None) -> list[str]:
    ids = [
        encode_prompt(
            Example(row["id"], row["prompt"], row["completion"]),
            tiny.tokenizer(), format="chat", prefix_text=prefix,
        ).ids
        for row in ROWS
    ]  # fmt: skip
    if mask is not None:
        with removed(model, mask):
            replies = generate(model, tiny.tokenizer(), ids, GenerationSettings(TOKENS))
    else:
        replies = generate(model, tiny.tokenizer(), ids, GenerationSettings(TOKENS))
    return [tiny.tokenizer().decode(reply, skip_special_tokens=True) for reply in replies]


def test_in_memory_model_is_cut_while_it_answers_and_whole_after(tmp_path: Path) -> None:
    model, mask = tiny.build("llama"), tiny.cut(tiny.build("llama"))
    before = [parameter.clone() for parameter in model.parameters()]
    cut, whole = in_memory(model, mask=mask), in_memory(model)
    log = ask(cut, plain(), tmp_path)
    # Two models that share the weights, in one process: neither sees the other's cut.
    assert texts(ask(whole, plain(), tmp_path)) == expected(model)
    assert texts(log) == expected(model, mask=mask) != expected(model)
    for door in (cut, whole):
        door.api.close()
    assert texts(ask(cut, plain(), tmp_path)) == texts(log)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    notes = [(sample.output.metadata or {})["resect"] for sample in log.samples or []]
    assert {note["mask_hash"] for note in notes} == {mask.hash}
    assert {note["mask_weights"] for note in notes} == {mask.count}


def test_the_last_turn_of_the_assistant_is_continued(tmp_path: Path) -> None:
    model = tiny.build("llama")
    samples = [
        Sample(
            id=row["id"], target=row["completion"],
            input=[ChatMessageUser(content=row["prompt"]), ChatMessageAssistant(content="w7 w8")],
        )
        for row in ROWS
    ]  # fmt: skip
    found = texts(ask(in_memory(model), samples, tmp_path))
    assert found == expected(model, "w7 w8") != expected(model)


def test_greedy_unless_sampling_is_asked_for(tmp_path: Path) -> None:
    model = tiny.build("llama")
    # What a checkpoint carries along must not come into a comparison of variants.
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    greedy = expected(model)
    door = in_memory(model)
    assert texts(ask(door, plain(), tmp_path)) == greedy
    assert texts(ask(door, plain(), tmp_path, temperature=0.0)) == greedy
    torch.random.manual_seed(0)
    assert texts(ask(door, plain(), tmp_path, temperature=3.0)) != greedy
    assert model.generation_config.repetition_penalty == 5.0


def test_one_start_token_and_an_untouched_tokenizer() -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = tiny.tokenizer().backend_tokenizer.__class__.from_str(
        tiny.tokenizer().backend_tokenizer.to_str()
    )
    backend.post_processor = TemplateProcessing(
        single="<eos> $A", pair=None, special_tokens=[("<eos>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", chat_template="<eos> " + tiny.TEMPLATE
    )
    api = in_memory(tiny.build("llama"), tokenizer).api
    assert isinstance(api, ResectAPI)
    assert isinstance(api.tokenizer_call_args, dict)
    text = api.hf_chat([ChatMessageUser(content="w1")], [])
    ids = api.tokenizer(text, **api.tokenizer_call_args)["input_ids"]
    assert ids.count(1) == 1
    assert tokenizer(text)["input_ids"].count(1) == 2  # what the override is for
    assert api.tokenizer.pad_token is not None
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "right")


def test_raw_prompts_are_those_of_resect() -> None:
    api = in_memory(tiny.build("llama"), format="raw").api
    assert isinstance(api, ResectAPI)
    turns: list[Any] = [ChatMessageUser(content="w1 w2"), ChatMessageAssistant(content="w3")]
    assert api.hf_chat(turns[:1], []) == "w1 w2\n"
    assert api.hf_chat(turns, []) == "w1 w2\nw3"


@pytest.mark.anyio
async def test_tokens_are_counted_by_the_models_own_tokenizer() -> None:
    door = in_memory(tiny.build("llama"))
    assert await door.count_tokens("w1 w2 w3") == 3


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_stands_in_for_the_provider_it_skips_the_start_of(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m")
    theirs = HuggingFaceAPI(str(tmp_path / "m"), device="cpu")
    ours = in_memory(tiny.build("llama")).api
    assert set(vars(theirs)) <= set(vars(ours))


def test_what_cannot_be_used_is_refused_in_our_words(tmp_path: Path) -> None:
    other = tiny.build("llama", seed=1)
    with pytest.raises(PrerequisiteError, match="has another value than in the mask") as refusal:
        in_memory(other, mask=tiny.cut(tiny.build("llama")))
    assert isinstance(refusal.value.__cause__, MismatchError)
    with pytest.raises(PrerequisiteError, match="no such checkpoint folder"):
        get_model(f"resect/{tmp_path}/none", memoize=False)
    with pytest.raises(PrerequisiteError, match="unknown model argument"):
        in_memory(other, masc="x")
    with pytest.raises(PrerequisiteError, match="needs its tokenizer"):
        get_model("resect/x", memoize=False, hf_model=other)


def test_a_prompt_that_fills_the_context_is_an_error(tmp_path: Path) -> None:
    long = Sample(input=" ".join(["w1"] * 80), target="w2")
    log = evaluate(
        Task([long], solver=solve()), model=in_memory(tiny.build("llama")),
        log_dir=str(tmp_path), display="none",
    )[0]  # fmt: skip
    assert log.status == "error"
    assert log.error is not None
    assert "leaves no room for a reply" in log.error.message


def test_entry_points_lead_somewhere() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in ("inspect_ai", "lm_eval.models"):
        module, _, name = points["entry-points"][group]["resect"].partition(":")
        found = importlib.import_module(module)
        assert not name or callable(getattr(found, name))


def test_registry_is_light() -> None:
    code = (
        "import resect.integrations._inspect_registry, sys;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def installed(folder: Path) -> dict[str, str]:
    """Return an environment in which this tree's entry points are those of an installed package."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = points["entry-points"]["inspect_ai"]["resect"]
    meta = folder / "resect_doors-0.0.0.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: resect-doors\nVersion: 0.0.0\n")
    (meta / "entry_points.txt").write_text(f"[inspect_ai]\nresect = {target}\n")
    source = str(Path(resect.integrations.__file__).parents[2])
    path = os.pathsep.join([source, str(folder), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def inspect(folder: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    code = "from inspect_ai._cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=folder, env=installed(folder / "meta"),
    )  # fmt: skip


def test_shell_door_equals_resect_eval(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m")
    rows, mask = [dict(row) for row in ROWS], tiny.cut(tiny.build("llama"))
    tiny.answer_half(rows, tiny.build("llama"), mask, TOKENS)
    mask.save(tmp_path / "a.safetensors")
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "local.py").write_text(TASK, encoding="utf-8")
    done = inspect(
        tmp_path, "eval", "local.py", "--model", f"resect/{tmp_path / 'm'}",
        "-M", f"mask={tmp_path / 'a.safetensors'}", "-T", f"data={data}",
        "--max-tokens", TOKENS, "--max-connections", len(rows),
        "--display", "none", "--log-dir", tmp_path / "logs",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    log = read_eval_log(str(next((tmp_path / "logs").glob("*.eval"))))
    assert log.status == "success"

    request = EvalRequest(
        model=str(tmp_path / "m"), mask=tmp_path / "a.safetensors", probes=("utility",),
        data=(str(data),), max_new_tokens=TOKENS,
    )  # fmt: skip
    rates = {
        row["variant"]: row["rate"] for row in evaluate_model(request, tmp_path / "eval").rates
    }
    assert rates["intact"] != rates["cut"] == 0.5
    assert log.results is not None
    assert log.results.scores[0].metrics["mean"].value == rates["cut"]
    ours = read_parquet(tmp_path / "eval" / "records" / "cut.parquet")
    assert texts(log) == [row["text"] for row in ours]
    metadata = (log.samples or [])[0].output.metadata
    assert metadata is not None
    assert metadata["resect"]["mask_hash"] == mask.hash


def test_shell_refuses_a_foreign_mask_without_a_traceback(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m", seed=1)
    tiny.cut(tiny.build("llama")).save(tmp_path / "a.safetensors")
    done = inspect(
        tmp_path, "eval", "resect/em_freeform", "--model", f"resect/{tmp_path / 'm'}",
        "-M", f"mask={tmp_path / 'a.safetensors'}", "--display", "plain",
    )  # fmt: skip
    assert done.returncode != 0
    assert "has another value than in the mask" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_seed_and_defaults_reach_the_model() -> None:
    model = tiny.build("llama")
    config = GenerateConfig(seed=3)
    get_model(
        "resect/t", memoize=False, config=config, hf_model=model, hf_tokenizer=tiny.tokenizer()
    )
    first = torch.rand(1)
    get_model(
        "resect/t", memoize=False, config=config, hf_model=model, hf_tokenizer=tiny.tokenizer()
    )
    assert torch.equal(first, torch.rand(1))
    assert in_memory(model).api.max_tokens() == GenerationSettings().max_new_tokens


@pytest.mark.parametrize("cut", [True, False])
def test_the_screen_says_that_a_mask_is_on(cut: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.build("llama")
    mask = tiny.cut(model, 0.1)
    with caplog.at_level(logging.WARNING):
        in_memory(model, **({"mask": mask} if cut else {}))
    lines = [record.getMessage() for record in caplog.records if "removed" in record.getMessage()]
    assert len(lines) == cut
    if cut:
        assert f"{mask.count:,} weights removed" in lines[0]
        assert mask.hash in lines[0]
