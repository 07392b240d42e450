"""A run is gone on with, and reported again, under the model and data that it began with alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from command_line import call, ok, write
from resect.edit.checkpoint import prune_checkpoint
from resect.errors import InputError
from resect.model import load_model, prunable_tensors
from resect.model.on_disk import open_shelf
from resect.model.stamps import stamps_of
from resect.runs.config import parse_config
from resect.runs.run import Steps, carry_out
from resect.weights.mask import Mask, MaskTensor


class Finished:
    """A finished run of a tiny model, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.model, self.run, self.config = folder / "m", folder / "run", folder / "run.yaml"
        self.data = folder / "harm.jsonl"
        tiny.save("llama", self.model)
        rows = [row | {"split": "calibration" if n < 8 else "evaluation"}
                for n, row in enumerate(tiny.rows(24, "h"))]  # fmt: skip
        write(self.data, rows)
        benign = write(folder / "benign.jsonl", tiny.rows(8, "b", split="calibration"))
        values = {
            "name": "replaced",
            "models": {"aligned": str(self.model)},
            "data": {"harm": str(self.data), "benign": str(benign)},
            "targets": {"generation": {"data": "harm"}},
            "preserve": {"data": "benign"},
            "attack": {"name": "none"},
            "evaluation": {
                "probes": {"generation": "harm", "utility": "harm"},
                "judge": "keyword",
                "max_new_tokens": 2,
            },
            "studies": {"compactness": {"fractions": [0.1]}},
        }
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")
        ok(*self.words)

    @property
    def words(self) -> tuple[object, ...]:
        return ("study", "run", self.config, "-o", self.run)

    @property
    def record(self) -> Path:
        return self.run / "models" / "aligned-0.json"

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return facts


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("measured"))


@pytest.fixture
def finished(measured: Finished) -> Any:
    """Return the run; what a test does to its files is undone."""
    backup = measured.model.with_name("backup")
    shutil.copytree(measured.model.parent, backup)
    yield measured
    for path in (measured.model, measured.run):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(backup / path.name, path)
    shutil.copy2(backup / measured.data.name, measured.data)
    shutil.rmtree(backup)


def test_a_finished_run_is_not_reported_again_under_another_model(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in finished.run.rglob("*") if path.is_file()}
    tiny.save("llama", finished.model, seed=1)
    done = call(*finished.words, "--resume")
    assert done.returncode == 2
    assert "the model 'aligned' is not the one that this run began with" in done.stderr
    assert finished.facts()["fingerprint"] in done.stderr
    assert "next step: put that one back" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    # What was measured can still be shown.
    ok("report", finished.run)


def test_two_cut_weights_are_another_model(finished: Finished) -> None:
    name, weight = next(iter(prunable_tensors(load_model(finished.model).model).items()))
    index = torch.tensor([3, 5])
    entry = MaskTensor(tuple(weight.shape), index, weight.detach().view(-1)[index],
                       torch.zeros(2, dtype=torch.int8))  # fmt: skip
    cut = finished.model.with_name("cut")
    prune_checkpoint(finished.model, Mask({name: entry}, {}), cut)
    shutil.rmtree(finished.model)
    cut.replace(finished.model)
    done = call(*finished.words, "--resume")
    assert done.returncode == 2
    assert "is not the one that this run began with" in done.stderr


def test_another_tokenizer_is_another_model(finished: Finished) -> None:
    template = finished.model / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    done = call(*finished.words, "--resume")
    assert done.returncode == 2
    assert "the tokenizer of the model 'aligned' is not the one" in done.stderr


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the checkpoints that are read to be compared, as they are."""
    places: list[Path] = []

    def noted(folder: Path, **options: Any) -> Any:
        places.append(folder)
        return open_shelf(folder, **options)

    monkeypatch.setattr("resect.model.on_disk.open_shelf", noted)
    return places


def test_a_model_is_read_where_its_files_were_written_to_and_once(
    finished: Finished, opened: list[Path]
) -> None:
    ok(*finished.words, "--resume")
    assert opened == []
    # The same bytes, written again.
    os.utime(finished.model / "model.safetensors", ns=(1, 1))
    ok(*finished.words, "--resume")
    assert opened == [finished.model]
    ok(*finished.words, "--resume")
    assert opened == [finished.model]


def test_a_run_of_an_earlier_version_is_looked_at_once(
    finished: Finished, opened: list[Path]
) -> None:
    facts = finished.facts()
    del facts["stamps"]
    earlier = facts | {"fingerprint": facts["fingerprint"][:16]}
    finished.record.write_text(json.dumps(earlier), encoding="utf-8")
    for _ in range(2):
        ok(*finished.words, "--resume")
        assert opened == [finished.model]
    tiny.save("llama", finished.model, seed=1)
    assert call(*finished.words, "--resume").returncode == 2


def test_a_model_that_is_gone_is_named_and_the_report_is_made(
    finished: Finished, caplog: pytest.LogCaptureFixture
) -> None:
    page = finished.run / "report.html"
    page.unlink()
    shutil.rmtree(finished.model)
    done = call(*finished.words, "--resume")
    assert done.returncode == 0, done.stderr
    assert "the model 'aligned' of this run could not be looked at" in caplog.text
    assert str(finished.model) in caplog.text
    assert page.exists()


def test_a_record_that_is_broken_is_named(finished: Finished) -> None:
    os.utime(finished.model / "model.safetensors", ns=(1, 1))
    for content in ("[]", "{}"):
        finished.record.write_text(content, encoding="utf-8")
        done = call(*finished.words, "--resume")
        assert done.returncode == 2
        assert "is not a whole record of a model" in done.stderr


def test_a_finished_run_is_not_reported_again_under_other_data(finished: Finished) -> None:
    text = finished.data.read_text(encoding="utf-8")
    finished.data.write_text(text.replace("w1 ", "w2 "), encoding="utf-8")
    done = call(*finished.words, "--resume")
    assert done.returncode == 2
    assert "the data set 'harm' is not the one that this run began with" in done.stderr


def test_the_files_of_an_adapter_are_its_own_and_those_of_its_base(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    names = {Path(path).relative_to(tmp_path).as_posix() for path in stamps_of(adapter)}
    assert {"adapter/adapter_config.json", "base/model.safetensors", "base/config.json"} <= names
    file = tmp_path / "one.gguf"
    file.write_bytes(b"GGUF")
    assert list(stamps_of(file)) == [str(file)]
    assert stamps_of(file)[str(file)][0] == 4


def test_data_that_are_not_there_are_named_before_there_is_a_folder(
    finished: Finished, tmp_path: Path
) -> None:
    """A folder with the mistake in it would refuse the command once it is put right."""
    values = yaml.safe_load(finished.config.read_text(encoding="utf-8"))
    values["data"]["harm"] += "-mistaken.jsonl"
    config, run = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = call("study", "run", config, "-o", run)
    assert done.returncode == 2
    assert "no such data file" in done.stderr
    assert not run.exists()


def test_data_that_a_command_prepares_need_not_be_there_before(
    finished: Finished, tmp_path: Path
) -> None:
    values = yaml.safe_load(finished.config.read_text(encoding="utf-8"))
    data = tmp_path / "prepared.jsonl"
    config = parse_config(values | {"data": values["data"] | {"harm": str(data)}}, "test")

    def prepare() -> None:
        shutil.copy2(finished.data, data)

    with pytest.raises(InputError, match="no such data file"):
        carry_out(config, tmp_path / "run", resume=False)
    carry_out(config, tmp_path / "run", resume=False, steps=Steps(prepare=prepare))
    assert (tmp_path / "run" / "results.json").exists()
