"""Files from strangers: every one is read or refused with one message, within bounds."""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from resect import files
from resect.audit import load_tuned
from resect.data import load_data
from resect.data.encode import encode, encode_prompt
from resect.data.template.render import is_plain
from resect.errors import InputError, ResectError, visible
from resect.evaluation.judges.fence import fenced
from resect.files import reading
from resect.model import load_model
from resect.records import Example
from resect.report import build_report
from resect.runs.config import RunConfig, load_config
from resect.weights.candidates import Candidates
from resect.weights.mask import KIND, Mask
from resect.weights.scores import ScoreMeta, Scores

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


def _read(read: Any, path: Path) -> Any:
    """Return what a file holds, or None if the user is told why it cannot be read.

    Anything else that is raised fails the test.
    """
    try:
        return read(path)
    except ResectError as error:
        assert str(error)  # noqa: PT017
        return None


def _sound(mask: Mask | None) -> bool:
    """Return whether a mask was refused, or holds places of its tensors alone, in order."""
    if mask is None:
        return True
    return all(
        bool((tensor.index[1:] > tensor.index[:-1]).all())
        and bool(((tensor.index >= 0) & (tensor.index < math.prod(tensor.shape))).all())
        and len(tensor.index) == len(tensor.value)
        for tensor in mask.tensors.values()
    )


@FUZZ
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["jsonl", "json", "csv", "parquet",
       "txt", "jsonl.gz"]))  # fmt: skip
def test_bytes_as_data(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    data = _read(load_data, path)
    assert data is None or len(data.examples) > 0


@FUZZ
@given(rows=st.lists(st.dictionaries(
    st.sampled_from(["prompt", "completion", "category", "id", "split", "key", "prefix_tokens"]),
    JSON), max_size=3))  # fmt: skip
def test_odd_rows(rows: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = _read(load_data, path)
    assert data is None or len(data.examples) == len(rows)


@FUZZ
@given(content=st.text(max_size=80) | JSON.map(json.dumps))
def test_text_as_configuration(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    config = _read(load_config, path)
    assert config is None or isinstance(config, RunConfig)


@FUZZ
@given(content=JSON)
def test_json_as_results(content: Any, tmp_path: Path) -> None:
    whole = {"claims": content, "studies": content, "provenance": content, "name": content}
    (tmp_path / "results.json").write_text(json.dumps(whole), encoding="utf-8")
    report = tmp_path / "report.html"
    report.unlink(missing_ok=True)
    # A refused result leaves no report.
    assert (_read(build_report, tmp_path) is not None) == report.exists()


@FUZZ
@given(where=st.integers(0, 400), new=st.binary(min_size=1, max_size=8))
def test_changed_bytes_of_a_mask(where: int, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    if not path.exists():
        tiny.cut(tiny.build("llama")).save(path)
    content = path.read_bytes()
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(content[:where] + new + content[where + len(new) :])
    assert _sound(_read(Mask.load, changed))
    assert _read(Scores.load, changed) is None  # it is a mask at best


@FUZZ
@given(shape=JSON, meta=JSON)
def test_what_a_mask_says_of_itself(shape: Any, meta: Any, tmp_path: Path) -> None:
    assert _sound(_read(Mask.load, _mask(tmp_path, shape, meta=meta)))


def _mask(path: Path, shape: Any, index: list[int] | None = None, meta: Any = None) -> Path:
    places = torch.tensor([0, 1] if index is None else index, dtype=torch.int32)
    blobs = {
        "w|index": places,
        "w|value": torch.ones(len(places)),
        "w|round": torch.zeros(len(places), dtype=torch.uint8),
    }
    header = {"kind": KIND, "shapes": {"w": shape}, "meta": {} if meta is None else meta}
    path = path / "odd.safetensors"
    save_file(blobs, path, {"resect": json.dumps(header | files.provenance())})
    return path


@pytest.mark.parametrize(
    ("shape", "index", "message"),
    [
        ([2, -2], None, "no tensor has"),
        ([2.5], None, "no tensor has"),
        ([10**30], None, "no tensor has"),
        (3, None, "not a whole mask"),
        ([4], [3, 1], "not sorted"),
        ([4], [1, 1], "not sorted"),
        ([4], [0, 9], "outside"),
        ([4], [-1, 2], "outside"),
    ],
)
def test_masks_that_lie(shape: Any, index: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Mask.load(_mask(tmp_path, shape, index))


def test_a_header_that_claims_terabytes(tmp_path: Path) -> None:
    header = json.dumps({"w|index": {"dtype": "F32", "shape": [10**12],
                                     "data_offsets": [0, 4 * 10**12]}}).encode()  # fmt: skip
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (Mask.load, Scores.load):
        with pytest.raises(InputError, match="not a readable artefact"):
            read(path)


@pytest.mark.parametrize("side", [10**30, 2**63])
def test_scores_of_an_endless_tensor(side: int, tmp_path: Path) -> None:
    # Found by atheris: a number too large to compare with.
    path = tmp_path / "x.scores.safetensors"
    candidates = Candidates(0.1, 400)
    candidates.add("a", torch.arange(400.0).reshape(20, 20), torch.ones(20, 20))
    meta = ScoreMeta("snip", "signed", 0.1, "m", "0", "1", "2", 8, 80, "raw", 0, "", 0)
    Scores(candidates.finish(), meta).save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["resect"])
        blobs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["tensors"][0][1] = [side]
    save_file(blobs, path, {"resect": json.dumps(header)})
    with pytest.raises(InputError, match="do not fit its shape"):
        Scores.load(path)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.place = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("content", ["model", "adapter"])
def test_nothing_in_a_pickle_is_run(content: str, tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    trap = tmp_path / "ran"
    if content == "model":
        (model / "model.safetensors").unlink()
        torch.save({"x": Trap(trap)}, model / "pytorch_model.bin")
        with pytest.raises(InputError, match="safetensors"):
            load_model(model)
    else:
        (tmp_path / "adapter").mkdir()
        config = {
            "peft_type": "LORA",
            "r": 1,
            "target_modules": ["q_proj"],
            "task_type": "CAUSAL_LM",
        }
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        torch.save({"x": Trap(trap)}, tmp_path / "adapter" / "adapter_model.bin")
        with pytest.raises(InputError, match="no safetensors weights"):
            load_tuned(str(model), str(tmp_path / "adapter"))
    assert not trap.exists()


def test_bombs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1_000_000)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b" " * 5_000_000))
    # One long text, named by every row: the file is small, what it stands for is not.
    table = pa.table({"text": pa.array(["x" * 10_000] * 1_000)})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=True)
    assert (tmp_path / "x.parquet").stat().st_size < 50_000
    for name in ("x.jsonl.gz", "x.parquet"):
        with pytest.raises(InputError, match="unpacks to more"):
            load_data(tmp_path / name)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
        "{{ 1 // 0 }}",
        "{{ messages[9].content.x }}",
        "{% for %}",
        "{{ raise_exception('\x1b[31mno') }}",
        "{% for x in range(10**9) %}x{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ 'x' * 10 ** 8 }}",
        "{% set n = namespace(x='x' * 1000) %}{% for _ in range(99) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_templates(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = type(tiny.tokenizer()).from_pretrained(_tokenizer(tmp_path / "t", template))
    example = Example(id="e", prompt="w1", completion="w2")
    with pytest.raises(InputError, match="chat template"):
        encode([example], tokenizer)
    assert not (tmp_path / "ran").exists()


def test_a_template_in_another_process_writes_what_it_writes_here(tmp_path: Path) -> None:
    # An assignment is not plain, so that this one goes to the other process.
    assert is_plain(tiny.TEMPLATE)
    odd = "{% set first = messages[0] %}" + tiny.TEMPLATE + "{{ first.content | upper }}"
    assert not is_plain(odd)
    tokenizer = type(tiny.tokenizer()).from_pretrained(_tokenizer(tmp_path / "t", odd))
    example = Example(id="e", prompt="w1 é \U0001f600", completion="w2")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": example.prompt}], add_generation_prompt=True, return_dict=True
    )
    for _ in range(2):
        prompt = encode_prompt(example, tokenizer, format="chat")
        assert list(prompt.ids) == expected["input_ids"]


@pytest.mark.parametrize(
    "template",
    [
        "{% set x = 1 %}",
        "{{ range(9) }}",
        "{{ 2 ** 9 }}",
        "{{ messages | list }}",
        "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}",
        "{% for a in messages %}{% for b in a.content %}{% endfor %}{% endfor %}",
        "{% for a in 'abc' %}{% endfor %}",
        "{% macro f() %}{% endmacro %}",
        "{% for a in messages recursive %}{% endfor %}",
        "x" * 20_001,
    ],
)
def test_what_could_go_on_for_long_is_not_plain(template: str) -> None:
    assert not is_plain(template)


def _tokenizer(folder: Path, template: str) -> Path:
    tiny.tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["tables", "figures", "report.html", "records"])
def test_links_out_of_a_run_are_refused(name: str, tmp_path: Path) -> None:
    import example_run

    run = example_run.write(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    path = run / name
    if not path.exists():
        path.symlink_to(outside)
    else:
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="link"):
        build_report(run)
    assert not list(outside.iterdir())


@given(text=st.text())
def test_nothing_invisible_reaches_a_terminal(text: str) -> None:
    shown = visible(text + "\x1b[31m\u202e\u2066\x9b\x00\r")
    assert not set(shown) & set("\x1b\u202e\u2066\x9b\x00\r")
    assert visible(shown) == shown


@given(text=st.text(), context=st.text())
def test_no_text_holds_the_code_of_its_fence(text: str, context: str) -> None:
    shown = fenced({"a": text, "b": context})
    code = shown.split("\n", 1)[0].removeprefix("<<<a ")
    assert code not in text + context
    assert shown.count(code) == 4
    # A text that repeats the whole fence is inside a fence of another code.
    again = fenced({"a": shown, "b": context})
    assert code != again.split("\n", 1)[0].removeprefix("<<<a ")
