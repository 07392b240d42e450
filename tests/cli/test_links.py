"""A checkpoint folder with links: what can be scored and not pruned is said before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from command_line import call, write


@pytest.mark.parametrize("command", ["score", "locate"])
def test_files_that_prune_will_refuse_are_named_before_scoring(
    command: str, tmp_path: Path
) -> None:
    model = tiny.save("llama", tmp_path / "model")
    data = write(tmp_path / "rows.jsonl", tiny.rows(4, "r"))
    options = ["--target", data, "--preserve", data, "--q", "0.05", "--p", "0"]
    words = ["--data", data] if command == "score" else options
    plain = call(command, model, *words, "-o", tmp_path / "plain.safetensors")
    assert plain.returncode == 0, plain.stderr
    assert "link" not in plain.stderr
    # Weights elsewhere are usual, and prune reads them as it reads any others.
    for name in ("config.json", "model.safetensors"):
        (model / name).rename(tmp_path / name)
        (model / name).symlink_to(tmp_path / name)
    done = call(command, model, *words, "-o", tmp_path / "new.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is a link that leads out") == 1
    assert "config.json" in done.stderr
    mask = tiny.cut(tiny.build("llama"))
    mask.save(tmp_path / "m.mask.safetensors")
    pruned = call("prune", model, tmp_path / "m.mask.safetensors", "-o", tmp_path / "cut")
    assert pruned.returncode == 2
    assert "config.json" in pruned.stderr
    assert not (tmp_path / "cut").exists()


def test_the_cache_of_the_hub_is_pruned_as_it_is(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    tiny.save("llama", snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    data = write(tmp_path / "rows.jsonl", tiny.rows(4, "r"))
    done = call("score", snapshot, "--data", data, "-o", tmp_path / "s.safetensors")
    assert done.returncode == 0, done.stderr
    assert "link" not in done.stderr
    tiny.cut(tiny.build("llama")).save(tmp_path / "m.mask.safetensors")
    done = call("prune", snapshot, tmp_path / "m.mask.safetensors", "-o", tmp_path / "cut")
    assert done.returncode == 0, done.stderr
