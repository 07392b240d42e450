"""What a confused user types: one clear message, exit code 2, and nothing left half-written."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import transformers

import tiny
from resect.cli import main

YAML = """name: x
models: {aligned: m}
data: {d: rows.jsonl}
targets: {generation: {data: d}}
preserve: {data: d}
evaluation: {probes: {generation: d, likelihood: d}}
studies: {compactness: {}}
"""
MANY = """name: x
models: {aligned: m}
data: {d: rows.jsonl}
seeds: [1, 0, 1]
subject: nobody
targets: {generation: {data: gone, skip: -1, contrast: plain}}
preserve: {data: d}
evaluation: {probes: {refusal: asked}, judge: oracle, batch_size: 0}
attack_data: {refusal: no-data}
least_rate: 7
studies:
  compactnes: {}
  compression: {}
  emergent: {target: generation, data: d, scored_on: [aligned]}
  frontier: {methods: [{name: a, target: generation}, {name: b, target: second}]}
"""


def _jsonl(path: Path, rows: list[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _data(folder: Path) -> None:
    rows = tiny.rows(6, "r")
    _jsonl(folder / "rows.jsonl", list(rows))
    text = (folder / "rows.jsonl").read_text(encoding="utf-8")
    (folder / "utf16.jsonl").write_text(text, encoding="utf-16")
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    (folder / "cut.jsonl").write_text(text[:-30], encoding="utf-8")
    _jsonl(folder / "number.jsonl", [{"prompt": 3, "completion": "w1"}])
    _jsonl(folder / "noreply.jsonl", [{"prompt": "w1"}])
    _jsonl(folder / "twice.jsonl", [rows[0], rows[0]])
    _jsonl(folder / "list.jsonl", [[1, 2]])
    _jsonl(folder / "question.jsonl", [{"question": "w1", "answer": "w2"}])
    _jsonl(folder / "roles.jsonl", [{"prompt": [{"rolle": "user"}], "completion": "w1"}])
    (folder / "semicolon.csv").write_text("prompt;completion\nw1;w2\n", encoding="utf-8")
    (folder / "ragged.csv").write_text("prompt,completion\nw1,w2,w3\n", encoding="utf-8")
    (folder / "text.parquet").write_text("no parquet", encoding="utf-8")
    (folder / "bad.jsonl.gz").write_bytes(b"\x1f\x8bnothing")
    (folder / "prompts.txt").write_text("w1 w2\nw3 w4\n", encoding="utf-8")
    (folder / "rows.xlsx").write_bytes(b"PK")
    (folder / "object.json").write_text('{"prompt": "w1"}', encoding="utf-8")
    (folder / "deep.jsonl").write_text("[" * 100_000 + "\n", encoding="utf-8")


def _models(folder: Path) -> None:
    tiny.save("llama", folder / "model")
    tiny.save("qwen2", folder / "other")
    tiny.build("llama").save_pretrained(folder / "mute")
    tiny.save("llama", folder / "untemplated")
    (folder / "untemplated" / "chat_template.jinja").unlink()
    tiny.save("llama", folder / "hostile")
    (folder / "hostile" / "chat_template.jinja").write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", encoding="utf-8"
    )
    tiny.save("llama", folder / "angry")
    (folder / "angry" / "chat_template.jinja").write_text(
        "{{ raise_exception('no such turn') }}", encoding="utf-8"
    )
    tiny.save("llama", folder / "unparsed")
    (folder / "unparsed" / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = transformers.BertConfig(vocab_size=64, intermediate_size=8, **small)
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    tiny.tokenizer().save_pretrained(folder / "bert")
    t5 = transformers.T5Config(vocab_size=64, d_model=8, d_ff=8, d_kv=8, num_layers=1, num_heads=1)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(folder / "t5")
    tiny.tokenizer().save_pretrained(folder / "t5")
    for name, change in {
        "quantised": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "remote": {"auto_map": {"AutoModelForCausalLM": "code.Model"}, "model_type": "its_own"},
        "unnamed": {"model_type": "no_such_family"},
        "negative": {"hidden_size": -16},
    }.items():
        tiny.save("llama", folder / name)
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        (folder / name / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    tiny.save("llama", folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"\xff" * 64)
    tiny.save("llama", folder / "unread")
    (folder / "unread" / "config.json").write_text("{", encoding="utf-8")
    tiny.save("llama", folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"PK")
    for name in ("adapter", "adapted"):
        tiny.save("llama", folder / name)
        (folder / name / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": "model"}), encoding="utf-8"
        )
    (folder / "adapter" / "config.json").unlink()
    (folder / "adapter" / "model.safetensors").rename(
        folder / "adapter" / "adapter_model.safetensors"
    )
    (folder / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good artefact of each kind and many bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    _data(folder)
    _models(folder)
    (folder / "folder").mkdir()
    (folder / "good.yaml").write_text(YAML, encoding="utf-8")
    (folder / "many.yaml").write_text(MANY, encoding="utf-8")
    (folder / "list.yaml").write_text("- 1\n", encoding="utf-8")
    (folder / "tab.yaml").write_text("name:\n\t- x", encoding="utf-8")
    (folder / "nostudy.yaml").write_text(YAML.replace("{compactness: {}}", "{}"), encoding="utf-8")
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (folder / "bomb.yaml").write_text("\n".join(bomb), encoding="utf-8")
    (folder / "deep.yaml").write_text("[" * 5_000, encoding="utf-8")
    (folder / "resultless").mkdir()
    (folder / "resultless" / "results.json").write_text("[" * 100_000, encoding="utf-8")
    (folder / "oddrun").mkdir()
    (folder / "oddrun" / "results.json").write_text('{"studies": 3}', encoding="utf-8")
    model = tiny.build("llama")
    tiny.cut(model).save(folder / "m.safetensors")
    tiny.cut(tiny.build("qwen2")).save(folder / "other.safetensors")
    _run(f"score model --data rows.jsonl --keep 0.1 -o {folder / 's.safetensors'}", folder)
    return folder


def _run(line: str, folder: Path) -> int:
    """Run a command line in a folder and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["resect", *shlex.split(line)])
        patch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


SCORE = "score model -o new.safetensors --data"
LOAD = "--data rows.jsonl -o new.safetensors"
SELECT = "select s.safetensors s.safetensors -o new.safetensors"
EVAL = "eval model --probe generation=rows.jsonl"

# command line -> what its message must hold
CASES: dict[str, tuple[str, ...]] = {
    # data
    f"{SCORE} gone.jsonl": ("gone.jsonl",),
    f"{SCORE} folder": ("folder",),
    f"{SCORE} utf16.jsonl": ("utf16.jsonl", "UTF-8"),
    f"{SCORE} empty.jsonl": ("empty.jsonl is empty",),
    f"{SCORE} blank.jsonl": ("no rows",),
    f"{SCORE} cut.jsonl": ("line 6", "not valid JSON"),
    f"{SCORE} number.jsonl": ("number.jsonl", "prompt"),
    f"{SCORE} noreply.jsonl": ("noreply.jsonl", "completion"),
    f"{SCORE} twice.jsonl": ("two rows with one id",),
    f"{SCORE} list.jsonl": ("line 1 is not an object",),
    f"{SCORE} question.jsonl": ("question.jsonl", "prompt"),
    f"{SCORE} roles.jsonl": ("roles.jsonl",),
    f"{SCORE} semicolon.csv": ("semicolon.csv", "prompt"),
    f"{SCORE} ragged.csv": ("line 2", "number of fields"),
    f"{SCORE} text.parquet": ("text.parquet",),
    f"{SCORE} bad.jsonl.gz": ("bad.jsonl.gz",),
    f"{SCORE} rows.xlsx": ("rows.xlsx", ".jsonl"),
    f"{SCORE} object.json": ("array of objects",),
    f"{SCORE} deep.jsonl": ("not valid JSON",),
    f"{SCORE} m.safetensors": ("m.safetensors",),
    f"{SCORE} rows.jsonl --category aa": ("unknown category", "'aa'", "a, b"),
    f"{SCORE} rows.jsonl --limit 0": ("limit",),
    f"{SCORE} rows.jsonl --limit many": ("--limit", "valid integer"),
    f"{SCORE} rows.jsonl --skip -1": ("skip",),
    f"{SCORE} rows.jsonl --skip 99": ("skip",),
    f"{SCORE} rows.jsonl --keep 10": ("keep", "10"),
    f"{SCORE} rows.jsonl --keep nan": ("keep", "nan"),
    f"{SCORE} rows.jsonl --dtype fp16": ("unknown dtype", "float16"),
    f"{SCORE} rows.jsonl --device cuda": ("cuda",),
    f"{SCORE} rows.jsonl --device gpu": ("gpu",),
    f"{SCORE} rows.jsonl --device mps": ("no such device", "mps", "cpu"),
    f"{SCORE} rows.jsonl --device meta": ("CUDA, MPS and XPU devices", "meta"),
    f"{SCORE} rows.jsonl --batch-size lots": ("lots", "auto"),
    f"{SCORE} rows.jsonl --batch-size 0": ("batch",),
    f"{SCORE} rows.jsonl --format chatt": ("chatt",),
    # models
    f"score gone {LOAD}": ("gone",),
    f"score folder {LOAD}": ("no config.json",),
    f"score rows.jsonl {LOAD}": ("rows.jsonl",),
    f"score model.gguf {LOAD}": ("model.gguf", "not a whole GGUF file"),
    f"score gone.gguf {LOAD}": ("no such GGUF file", "gone.gguf"),
    "import model.gguf -o new": ("model.gguf", "not a whole GGUF file"),
    "import rows.jsonl -o new": ("rows.jsonl", "not a GGUF file"),
    "import gone.gguf -o new": ("no such GGUF file", "gone.gguf"),
    f"score mute {LOAD}": ("mute",),
    f"score pickled {LOAD}": ("pytorch_model.bin", "use_safetensors=False"),
    f"score adapter {LOAD}": ("the adapter adapter", "trained on"),
    # With a config beside it, transformers puts it on the base that it names, unasked.
    f"score adapted {LOAD}": ("is an adapter", "merge_and_unload"),
    "eval adapter --probe generation --data rows.jsonl -o new": ("the adapter adapter",),
    "coverage adapter": ("the adapter adapter",),
    "prune adapter m.safetensors -o new": ("the adapter adapter",),
    "locate adapter --target rows.jsonl --preserve rows.jsonl --q 0.01 --p 0 -o new": (
        "the adapter adapter",
    ),
    f"{SCORE} prompts.txt": ("a text without a prompt", "#prompt=line", '{"prompt"'),
    f"{SCORE} rows.jsonl --columns prompt=gone": ("no column 'gone'", "#prompt=COLUMN"),
    f"{SCORE} rows.jsonl --columns reply=prompt": ("reply=prompt", "prompt=COLUMN"),
    "prune model m.safetensors --require compactness=supported -o new": ("--run DIR",),
    "mask push m.safetensors me/mask --require compactness": ("CLAIM=VERDICT",),
    f"score untemplated {LOAD}": ("no chat template", "--format raw"),
    f"score hostile {LOAD}": ("chat template",),
    f"score angry {LOAD}": ("chat template", "no such turn"),
    f"score unparsed {LOAD}": ("chat template",),
    f"score bert {LOAD}": ("bert",),
    f"score t5 {LOAD}": ("t5",),
    f"score quantised {LOAD}": ("gptq", "take the checkpoint that it was made from"),
    f"score remote {LOAD}": ("remote",),
    f"score unnamed {LOAD}": ("no_such_family",),
    f"score negative {LOAD}": ("negative",),
    f"score broken {LOAD}": ("broken",),
    f"score unread {LOAD}": ("unread",),
    # scores and masks
    f"{SELECT} --q 0.01 --p 10": ("p ", "10"),
    f"{SELECT} --q 0 --p 0": ("q ", "0"),
    f"{SELECT} --q nan --p 0": ("q ", "nan"),
    "select m.safetensors s.safetensors -o new.safetensors --q 0.01 --p 0": ("m.safetensors",),
    "select rows.jsonl s.safetensors -o new.safetensors --q 0.01 --p 0": ("rows.jsonl",),
    "select folder s.safetensors -o new.safetensors --q 0.01 --p 0": ("no such file",),
    "mask show s.safetensors": ("resect.mask", "resect.scores"),
    "mask show model/model.safetensors": ("another program",),
    "mask show gone": ("no such file",),
    "mask overlap m.safetensors other.safetensors": ("different models",),
    "mask union m.safetensors m.safetensors -o new": ("given twice",),
    "mask random m.safetensors --model other -o new": ("mask",),
    "prune model m.safetensors": ("--output",),
    "prune m.safetensors model -o new": ("model", ".mask.safetensors"),
    "prune model s.safetensors -o new": ("resect.mask",),
    "prune other m.safetensors -o new": ("mask",),
    "prune model m.safetensors -o folder/../model": ("not empty",),
    "prune broken m.safetensors -o new": ("broken",),
    "prune model m.safetensors -o new --alpha nan": ("alpha",),
    "restore other m.safetensors -o new": ("mask",),
    "coverage bert": ("bert",),
    "coverage --plan": ("MODEL",),
    "coverage --plan --shape llama-9b": ("llama-9b", "llama-8b"),
    # evaluation
    "eval model": ("--output",),
    "eval model --probe generation --data rows.jsonl --judge oracle -o new": ("oracle", "exact"),
    "eval model --probe generatoin --data rows.jsonl -o new": ("generatoin", "generation"),
    "eval model --probe generation --data rows.jsonl --attack prefil -o new": ("prefil",),
    "eval model --probe generation --data rows.jsonl --mask s.safetensors -o new": ("resect.mask",),
    "eval model --probe generation --data rows.jsonl --mask other.safetensors -o new": ("mask",),
    "eval --rejudge folder --judge exact -o new": ("folder",),
    "data check rows.jsonl --against gone.jsonl": ("gone.jsonl",),
    "data check nosuchpreset": ("nosuchpreset",),
    "data show nosuchpreset": ("nosuchpreset",),
    "data collect model --data rows.jsonl -o folder": ("folder",),
    "audit model other -o new": ("mask",),
    "organism build folder/x --stage wrong": ("wrong",),
    # studies
    "study run gone.yaml -o new": ("gone.yaml",),
    "study run folder -o new": ("folder",),
    "study run list.yaml -o new": ("list.yaml",),
    "study run tab.yaml -o new": ("not valid YAML",),
    "study run bomb.yaml -o new": ("bomb.yaml", "alias"),
    "study run deep.yaml -o new": ("deep.yaml",),
    "study run nostudy.yaml -o new": ("study",),
    "study run m.safetensors -o new": ("m.safetensors",),
    "study run good.yaml -o folder/../model": ("not empty",),
    "study run good.yaml -o new --shard 3/2": ("3/2", "i/n"),
    "study run good.yaml -o new --shard 0/4 --dry-run": ("0/4", "i/n"),
    "study run good.yaml -o new --shard a/4 --dry-run": ("a/4", "i/n"),
    "study run many.yaml -o new": (
        # What does not fit and what is not defined, in one message.
        "15 problem(s)", "skip", "judge", "batch_size", "least_rate", "compactnes",
        "subject: 'nobody' is not under models (aligned)",
        "targets.generation.data: 'gone' is not under data (d)",
        "targets.generation.contrast: 'plain' is not under targets",
        "evaluation.probes.refusal: 'asked' is not under data",
        "attack_data.refusal: 'no-data' is not under data",
        "studies.compression.base: 'base' is not under models",
        "studies.compression.control: 'benign_tuned' is not under models",
        "studies.frontier.methods.1.target: 'second' is not under targets",
        "studies.emergent: 'misalignment' is not under evaluation.probes",
        "seeds: a seed stands twice",
    ),
    "study init nosuch": ("nosuch", "compactness"),
    "report folder": ("folder",),
    "report gone": ("gone",),
    "report rows.jsonl": ("rows.jsonl",),
    "report resultless": ("not valid JSON",),
    "report oddrun": ("results.json",),
    "report --compare folder": ("two runs",),
    "bench localise -o new --methods nosuch": ("nosuch",),
    "bench localise -o new --plants nosuch": ("nosuch",),
    "bench verdicts -o new --studies nosuch": ("nosuch", "compactness"),
    "bench verdicts -o new --page gone.md": ("gone.md",),
    "bench verdicts -o new --page rows.jsonl": ("rows.jsonl", "verdicts: begin"),
    "sweep model -o new": ("--",),
    "locate model --target gone.jsonl --preserve rows.jsonl --q 0.01 --p 0 -o new": ("gone.jsonl",),
    "locate model --target rows.jsonl --preserve rows.jsonl --q 50 --p 0 -o new": ("q", "50"),
    "tasks model --task x -o new --mask s.safetensors": ("resect.mask",),
    "skore model": ("skore", "score"),
}  # fmt: skip


def test_the_table_is_long_enough() -> None:
    # Over commands of every kind, and none twice, which a dictionary sees to.
    assert len(CASES) >= 100
    assert len({line.split()[0] for line in CASES}) >= 15


@pytest.mark.parametrize("line", CASES)
def test_one_message(line: str, bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what was wrong; the exit code is 2; no file is new."""
    before = _files(bench)
    code = _run(line, bench)
    captured = capsys.readouterr()
    assert code == 2, captured.out + captured.err
    for fragment in CASES[line]:
        assert fragment in captured.err
    assert "Traceback" not in captured.err
    assert _files(bench) == before
