"""Files are whole or absent."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resect import files
from resect.errors import InputError


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".part" in path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), files.atomic(path) as draft:
        draft.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert files.read_json(path) == {"old": 1}
    assert leftovers(tmp_path) == []


def test_nan_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"new": float("nan")})
    assert files.read_json(path) == {"old": 1}


def test_a_kill_in_the_middle_leaves_no_artefact(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from resect import store\n"
        "with store.atomic(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert not path.exists()


def test_an_unwritable_place_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot write (?s:.*)next step: free some space"):
        files.write_text(tmp_path / "file" / "a.txt", "text")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(InputError, match="No space left"), files.atomic(path) as draft:
        draft.symlink_to("/dev/full")
        with draft.open("w", encoding="utf-8") as file:
            file.write("x" * 100_000)
    assert path.read_text(encoding="utf-8") == "old"
    assert leftovers(tmp_path) == []


def test_folders_are_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("a", encoding="utf-8")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with files.atomic_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("a", encoding="utf-8")
    assert (tmp_path / "out" / "a").read_text(encoding="utf-8") == "a"
    with pytest.raises(InputError, match="not empty"), files.atomic_folder(tmp_path / "out"):
        pass


def test_parquet_keeps_nested_values_and_nulls(tmp_path: Path) -> None:
    rows = [{"a": 1, "key": {"x": ["y"]}, "b": None}, {"a": 2, "key": {}, "b": 0.5}]
    files.write_parquet(tmp_path / "r.parquet", rows)
    assert files.read_parquet(tmp_path / "r.parquet") == rows
    (tmp_path / "r.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot read"):
        files.read_parquet(tmp_path / "r.parquet")


def test_records_can_be_read_while_they_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    sizes = (1, 400)
    rows = {
        size: [{"text": f"{number} {'x' * number}"} for number in range(size)] for size in sizes
    }
    files.write_parquet(path, rows[1])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for size in sizes:
                files.write_parquet(path, rows[size])

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(200):
            assert len(files.read_parquet(path)) in sizes
    finally:
        stop.set()
        writer.join()
