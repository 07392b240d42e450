"""Bounds on what is read: endless files, bombs, pipes, and links that lead out of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import example_run
import tiny
from resect import files
from resect.data import load_data
from resect.data.rows import read_rows
from resect.errors import InputError
from resect.evaluation.evaluate import rejudge
from resect.export import export_checkpoint, load_mask
from resect.export.card import Card, checkpoint_card
from resect.files import reading, tables
from resect.report import build_comparison, build_report
from resect.runs.config import load_config, parse_config
from resect.runs.launch.status import status
from resect.runs.reproduce import check_inputs
from resect.runs.run import open_run

CONFIG: dict[str, Any] = {
    "name": "x",
    "models": {"aligned": "m"},
    "data": {"d": "rows.jsonl"},
    "targets": {"generation": {"data": "d"}},
    "preserve": {"data": "d"},
    "evaluation": {"probes": {"generation": "d"}},
    "studies": {"compactness": {}},
}
ROWS = [{"prompt": f"w{number}", "completion": "w1", "category": "a"} for number in range(9)]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt", "parquet", "yaml"])
def test_a_file_of_many_gigabytes_is_refused_before_it_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    with path.open("wb") as file:
        file.truncate(40 * 2**30)  # sparse: it takes no room on the disk
    with pytest.raises(
        InputError, match=r"(?s)more than is read.*42,949,672,960.*RESECT_MOST_BYTES"
    ):
        (load_config if suffix == "yaml" else load_data)(path)
    for read in (files.read_json, files.read_parquet):
        with pytest.raises(InputError, match="more than is read"):
            read(path)


def test_the_bound_on_bytes_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "x.jsonl", ROWS)
    monkeypatch.setattr(reading, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="more than is read"):
        load_data(path)
    monkeypatch.setenv("RESECT_MOST_BYTES", "10000")
    assert len(load_data(path).examples) == len(ROWS)
    for wrong in ("1e9", "-1", "all"):
        monkeypatch.setenv("RESECT_MOST_BYTES", wrong)
        with pytest.raises(InputError, match="no number of bytes"):
            load_data(path)


def test_what_grows_while_it_is_read_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with reading.bounded_file(path, limit=12) as file:
        path.write_bytes(b"0" * 20)
        with pytest.raises(InputError, match="more than 12 bytes"):
            file.read()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt", "yaml"])
def test_pipes_and_devices_are_not_waited_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    os.mkfifo(path)
    device = tmp_path / f"zero.{suffix}"
    device.symlink_to("/dev/zero")
    for source in (path, device):
        with pytest.raises(InputError):
            load_data(source)
        with pytest.raises(InputError, match="no regular file"):
            files.read_json(source)
        with pytest.raises(InputError, match="no regular file"):
            load_config(source)
    if suffix != "yaml":
        device.unlink()
        device.symlink_to(path)
        with pytest.raises(InputError, match=r"is empty|no regular file"):
            read_rows(device)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", "{}\n" * 60),
        ("blank.jsonl", "\n" * 60),
        ("values.jsonl", json.dumps({"prompt": [1] * 500}) + "\n"),
        ("objects.json", json.dumps([{}] * 300)),
        ("lists.json", "[" * 250 + "]" * 250),
        ("rows.csv", "a,b\n" + "1,2\n" * 60),
        ("columns.csv", "a" + "," * 500 + "\n"),
    ],
)
def test_short_values_by_the_million_are_counted(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_ROWS", 50)
    monkeypatch.setattr(reading, "MOST_VALUES", 200)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="holds more than is read"):
        read_rows(tmp_path / name)


LONG = "x" * 10_000


@pytest.mark.parametrize(
    "column",
    [
        pa.array([LONG] * 500),
        pa.array([LONG.encode()] * 500, pa.binary()),
        pa.array([[LONG, LONG]] * 300),
        pa.array([{"a": {"b": LONG}}] * 500),
        pa.array([[{"a": LONG}]] * 500),
        pa.array([[1] * 100_000] * 10),
        pa.nulls(20_000),
    ],
    ids=["texts", "bytes", "lists", "structures", "both", "numbers", "nothing"],
)
def test_parquet_is_counted_as_what_it_stands_for(
    column: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 2_000_000)
    monkeypatch.setattr(tables, "MOST_VALUES", 400_000)
    monkeypatch.setattr(tables, "MOST_ROWS", 10_000)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"c": column}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="more than is read"):
        files.read_parquet(path)


def test_within_bounds_parquet_reads_as_pyarrow_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [
        {
            "t": "é\u202e",
            "b": b"\xff",
            "n": 1,
            "f": 0.5,
            "l": ["a", None],
            "s": {"u": "v", "w": [1]},
        },
        {"t": None, "b": None, "n": None, "f": None, "l": [], "s": None},
        {"t": "", "b": b"", "n": -1, "f": float("inf"), "l": None, "s": {"u": None, "w": None}},
    ] * 700
    pq.write_table(pa.Table.from_pylist(rows), path)
    with path.open("rb") as file:
        assert tables.bounded_rows(file, path) == rows


def test_long_yaml_is_refused_before_it_is_built(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content in ("[" + "a," * 250_000 + "]", "x: " + "y" * 4_500_000):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"too large for a configuration|more than is read"):
            load_config(path)


def _link(run: Path, outside: Path) -> None:
    (run / "records").mkdir(exist_ok=True)
    (run / "records" / "a.parquet").symlink_to(outside / "secret")


def _folder(run: Path, outside: Path) -> None:
    (run / "masks").symlink_to(outside)


def _upwards(run: Path, outside: Path) -> None:
    (run / "figures").symlink_to("../../outside")


def _pipe(run: Path, outside: Path) -> None:
    os.mkfifo(run / "metrics.jsonl")


def _card(run: Path, _new: Path) -> str:
    return checkpoint_card(Card(tiny.cut(tiny.build("llama")), "m", 0.0, "", "", run))


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "report": lambda run, new: build_report(run),
    "report --compare": lambda run, new: build_comparison([run, run], new),
    "report --compare into it": lambda run, new: build_comparison(
        [example_run.write(new / "a"), example_run.write(new / "b")], _without_results(run)
    ),
    "study status": lambda run, new: status(run),
    "study run --resume": lambda run, new: open_run(parse_config(CONFIG, "x"), run, resume=True),
    "reproduce": lambda run, new: check_inputs(run),
    "eval --rejudge": lambda run, new: rejudge(run, ("exact",), new),
    "prune --run": _card,
}


def _without_results(run: Path) -> Path:
    (run / "results.json").unlink()
    return run


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("leak", [_link, _folder, _upwards, _pipe])
def test_a_run_folder_that_leads_out_of_itself_is_refused(
    leak: Callable[[Path, Path], None], command: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret", encoding="utf-8")
    run = example_run.write(tmp_path / "runs" / "run")
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    leak(run, outside)
    with pytest.raises(InputError, match=r"link that leads out|neither a file nor a folder"):
        READERS[command](run, tmp_path / "new")
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_links_within_a_folder_and_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    mask = tiny.cut(tiny.build("llama"))
    snapshot = tmp_path / "models--a" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a" / "blobs").mkdir()
    mask.save(tmp_path / "models--a" / "blobs" / "1.safetensors")
    link = snapshot / "m.mask.safetensors"
    link.symlink_to("../../blobs/1.safetensors")
    assert load_mask(snapshot).hash == mask.hash
    link.unlink()
    mask.save(tmp_path / "else.mask.safetensors")
    link.symlink_to(tmp_path / "else.mask.safetensors")
    with pytest.raises(InputError, match="leads out"):
        load_mask(snapshot)


def test_a_checkpoint_takes_nothing_from_outside_of_its_folder(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    mask = tiny.cut(tiny.build("llama"))
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leads out"):
        export_checkpoint(model, mask, tmp_path / "cut")
    (model / "notes.txt").unlink()
    (model / "model.safetensors").rename(tmp_path / "w.safetensors")
    index = model / "model.safetensors.index.json"
    for wrong in ({"weight_map": {"a": "../w.safetensors"}}, {"weight_map": [1]}, {}, 3):
        index.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(InputError, match=r"lacks safetensors weights|not a whole index"):
            export_checkpoint(model, mask, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("role", ["../x", "a/b", "a\\b", ".hidden", "", "a\0", "x" * 101])
def test_a_role_is_no_path(role: str) -> None:
    with pytest.raises(InputError, match="models"):
        parse_config(CONFIG | {"models": {"aligned": "m", role: "m"}}, "x")
