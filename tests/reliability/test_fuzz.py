"""Some readers are fuzzed for a moment where atheris is installed; `fuzz.py` does all, longer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

from resect.errors import ResectError


def test_every_reader_reads_its_good_file(tmp_path: Path) -> None:
    # Otherwise only the first lines of a reader would be fuzzed.
    fuzz.write_good(tmp_path)
    refused = {}
    for name, (file, read) in fuzz.readers().items():
        path = tmp_path / ("preset.yaml" if name == "preset" else file)
        try:
            read(path)
        except ResectError as error:
            refused[name] = str(error)
    assert refused == {}


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="no atheris: pip install atheris (Linux, CPython 3.11 to 3.13) to fuzz the readers",
)
def test_changed_files_are_read_or_refused(tmp_path: Path) -> None:
    script = Path(fuzz.__file__)
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            "--seconds",
            "9",
            "--only",
            "mask,parquet,results",
            "--keep",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
