"""Full disks and read-only folders: one message, exit code 2, what was there stays, no litter."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from kill import TIMED, check, left, litter
from safetensors.torch import save_file

from resect import files
from resect.cli import main
from resect.files import remove_stale, writing

Words = Callable[[Path], list[str]]


def call(*words: str) -> int:
    """Run the command line in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["resect", *words])
        main()
    return int(end.value.code or 0)


def failing(patch: pytest.MonkeyPatch, number: int) -> list[Path]:
    """Let the `number`-th file fail to reach the disk, or the rename of it; return all files."""
    plain, seen = writing._sync, list[Path]()

    def sync(path: Path) -> None:
        seen.append(path)
        if len(seen) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(path)

    patch.setattr(writing, "_sync", sync)
    return seen


@pytest.fixture(scope="module")
def artefacts(inputs: Path) -> Path:
    """Add scores, a mask and a cut checkpoint to the inputs."""
    model = str(inputs / "m")
    for name, reduction in (("harm", "signed"), ("benign", "mean_of_abs")):
        words = ["score", model, "--data", str(inputs / f"{name}.jsonl"), "--keep", "0.1"]
        words += ["--reduction", reduction, "-o", str(inputs / f"{name}.scores.safetensors")]
        assert call(*words) == 0
    assert call(*select(inputs)(inputs)) == 0
    mask = str(inputs / "a.mask.safetensors")
    assert call("prune", model, mask, "-o", str(inputs / "cut")) == 0
    return inputs


def select(base: Path) -> Words:
    scores = [str(base / f"{name}.scores.safetensors") for name in ("harm", "benign")]
    return lambda f: [
        "select", *scores, "--q", "0.1", "--p", "0.05", "-o", str(f / "a.mask.safetensors"),
    ]  # fmt: skip


def commands(base: Path) -> dict[str, Words]:
    model, harm, mask = str(base / "m"), str(base / "harm.jsonl"), str(base / "a.mask.safetensors")
    return {
        "score": lambda f: ["score", model, "--data", harm, "-o", str(f / "a.scores.safetensors")],
        "select": select(base),
        "random": lambda f: [
            "mask", "random", mask, "--model", model, "-o", str(f / "r.mask.safetensors"),
        ],
        "prune": lambda f: ["prune", model, mask, "-o", str(f / "cut")],
        "restore": lambda f: ["restore", str(base / "cut"), mask, "-o", str(f / "back")],
        "eval": lambda f: [
            "eval", model, "--mask", mask, "--probe", "likelihood", "--data", harm,
            "-o", str(f / "eval"),
        ],
        "collect": lambda f: [
            "data", "collect", model, "--data", harm, "--judge", "keyword", "--attack", "none",
            "--max-new-tokens", "3", "-o", str(f / "set.jsonl"),
        ],
    }  # fmt: skip


def test_every_write_may_fail(
    artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = 0
    for name, words in commands(artefacts).items():
        folder = tmp_path / "out"
        number, code = 0, 2
        while code == 2:
            number += 1
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "a.scores.safetensors").write_text("old", encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch:
                seen = failing(patch, number)
                code = call(*words(folder))
            message = capsys.readouterr().err
            assert not litter(folder), (name, number)
            if code == 2:
                failures += 1
                assert message.count("cannot write") == 1, message
                assert "cannot write" in message, message
                assert "No space left on device" in message, message
                assert "next step: free some space" in message
                assert "Traceback" not in message
                old = (folder / "a.scores.safetensors").read_text(encoding="utf-8")
                assert old == "old", (name, number)
                # What was whole before the failure may stay: a collection goes on from it.
                others = {p.name for p in folder.iterdir()} - {"a.scores.safetensors"}
                assert others <= {"set.jsonl.parts", "set.rejected.jsonl", "set.provenance.json"}
        assert code == 0, (name, message)
        assert number == len(seen) + 1 > 1, name
    assert failures > 20


# Made anew in every run, or a line longer with every cell.
PASSED_OVER = {*TIMED, "metrics.jsonl"}


def test_every_write_of_a_study_may_fail_and_it_goes_on(
    artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["study", "run", str(artefacts / "study.yaml"), "-o", str(run)]
    assert call(*words) == 0
    undisturbed = left(run)
    shutil.rmtree(run)
    capsys.readouterr()
    failures, number, code, before = 0, 1, 2, {"": b""}
    while code == 2:
        again = ["--resume"] if (run / "config.yaml").exists() else []
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, number)
            code = call(*words, *again)
        message = capsys.readouterr().err
        assert not litter(tmp_path)
        after = left(run)
        for name, content in after.items():
            check(name, content, undisturbed, final=code == 0)
        if code == 2:
            failures += 1
            assert message.count("cannot write") == 1, message
            assert "No space left on device" in message, message
            assert "Traceback" not in message
            assert not (run / "claims").exists()
        # After the claim comes what failed the last time, and then the next file fails; what is
        # written anew in every run, as a report is, has to be passed over one by one.
        stored = {
            name: content for name, content in after.items() if Path(name).name not in PASSED_OVER
        }
        number = 3 if stored != before else number + 1
        before = stored
    assert code == 0
    assert failures > 10
    assert after.keys() == undisturbed.keys()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of one MiB, if this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_and_a_read_only_file_system(
    artefacts: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = small / "a.scores.safetensors"
    old.write_text("old", encoding="utf-8")
    filler = small / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    runs = commands(artefacts) | {
        "study": lambda f: ["study", "run", str(artefacts / "study.yaml"), "-o", str(f / "run")]
    }
    for options, message in (
        ("size=1m", "No space left on device"),
        ("ro", "Read-only file system"),
    ):
        gc.collect()  # an error that is still held holds its file open, which keeps it writable
        subprocess.run(["mount", "-o", f"remount,{options}", str(small)], check=True)
        assert old.read_text(encoding="utf-8") == "old"
        for name, words in runs.items():
            assert call(*words(small)) == 2, name
            message = capsys.readouterr().err
            assert message.count("cannot write") == 1, message
            assert message in message, message
            assert "Traceback" not in message
            assert old.read_text(encoding="utf-8") == "old"
            assert not litter(small), name
    assert json.loads((artefacts / "m" / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("where", [(Path, "replace"), (os, "unlink")], ids=["before", "within"])
def test_an_interrupted_removal_leaves_nothing(
    where: tuple[object, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "0.jsonl").write_text("{}\n", encoding="utf-8")
    plain = getattr(*where)
    calls: list[int] = []

    def once(*positional: object, **named: object) -> object:
        done = plain(*positional, **named)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(*where, once)
    with pytest.raises(KeyboardInterrupt):
        files.remove_folder(folder)
    assert not list(tmp_path.iterdir())


def test_only_what_nobody_has_touched_for_an_hour_is_removed(tmp_path: Path) -> None:
    def draft(name: str, folder_age: float, file_age: float) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "model.safetensors").touch()
        for changed, age in ((path / "model.safetensors", file_age), (path, folder_age)):
            os.utime(changed, (time.time() - age,) * 2)
        return path

    dead = draft(".abc.1234.part", 4000, 4000)
    # A folder is as young as what is written in it.
    live = draft(".abc.5678.part", 4000, 10)
    whole = draft("abc", 9000, 9000)
    remove_stale(tmp_path)
    remove_stale(tmp_path / "nowhere")
    assert (dead.exists(), live.exists(), whole.exists()) == (False, True, True)


def test_while_tensors_are_written_every_name_tells_that_it_is_unfinished(tmp_path: Path) -> None:
    # Safetensors renames a file of its own into place, whose name says nothing of ours.
    path = tmp_path / "a.safetensors"
    writer = (
        "import sys, torch; from resect import files; "
        "files.write_tensors(sys.argv[1], {'a': torch.zeros(5 * 10**7)}, {'kind': 'x'})"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
    seen = set[str]()
    while process.poll() is None:
        seen |= {inner.name for inner in tmp_path.iterdir()}
    assert process.returncode == 0
    assert any(writing.is_unfinished(Path(name)) for name in seen), seen
    assert all(writing.is_unfinished(Path(name)) for name in seen - {path.name}), seen
    assert [inner.name for inner in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_weights_have_the_rights_of_any_other_file(umask: int, tmp_path: Path) -> None:
    # Safetensors gives them to their owner alone, and no umask changes that.
    before = os.umask(umask)
    try:
        files.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {})
        with files.atomic_folder(tmp_path / "model") as folder:
            (folder / "shards").mkdir()
            for name in ("model.safetensors", "shards/b.safetensors"):
                save_file({"a": torch.zeros(3)}, folder / name)
        files.write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
