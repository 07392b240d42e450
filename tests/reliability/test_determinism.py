"""The whole path twice: other process count, time zone, locale, hash seed; no network, no secrets.

Both runs are processes whose sockets are blocked and whose environment holds invented secrets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kill import left

from resect.files.tables import read_parquet
from resect.weights.mask import Mask

SECRETS = {name: f"invented-{name.lower()}-7c1f9" for name in ("HF_TOKEN", "WANDB_API_KEY")}
SECRETS |= {"OPENAI_API_KEY": "invented-key-2b8e0", "ANTHROPIC_API_KEY": "invented-key-99d41"}

BLOCKED = """
import os, socket
def refuse(*words, **options):
    with open(os.environ["ATTEMPTS"], "a") as log:
        log.write(repr(words) + chr(10))
    raise OSError("the network is blocked in this test")
socket.getaddrinfo = socket.create_connection = refuse
plain = socket.socket.connect
def connect(self, address):
    return plain(self, address) if self.family == socket.AF_UNIX else refuse(address)
socket.socket.connect = connect
"""

PATH = """
import sys
from pathlib import Path
from resect.cli import main

def call(*words):
    sys.argv = ["resect", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise

if __name__ == "__main__":
    inputs, jobs = sys.argv[1:3]
    model, harm, benign = (f"{inputs}/{name}" for name in ("m", "harm.jsonl", "benign.jsonl"))
    call("score", model, "--data", harm, "--keep", "0.1", "-o", "harm.scores.safetensors")
    call("score", model, "--data", benign, "--keep", "0.1", "--reduction", "mean_of_abs",
         "-o", "benign.scores.safetensors")
    call("select", "harm.scores.safetensors", "benign.scores.safetensors", "--q", "0.1",
         "--p", "0.05", "-o", "a.mask.safetensors")
    call("mask", "random", "a.mask.safetensors", "--model", model, "-o", "r.mask.safetensors")
    call("prune", model, "a.mask.safetensors", "-o", "cut")
    call("eval", model, "--mask", "a.mask.safetensors", "--probe", "likelihood", "--data", harm,
         "-o", "eval")
    call("study", "run", f"{inputs}/study.yaml", "-o", "run", "--jobs", jobs)
    call("report", "run")
    first = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    call("report", "run")
    again = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert first == again, [str(path) for path in first if first[path] != again.get(path)]
"""

ARMS: dict[str, dict[str, str]] = {
    "1": {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1"},
    "2": {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "2"},
}


@pytest.fixture(scope="module")
def arms(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run the path with one process and with two; return the folders."""
    base = tmp_path_factory.mktemp("arms")
    (base / "sitecustomize.py").write_text(BLOCKED, encoding="utf-8")
    (base / "whole_path.py").write_text(PATH, encoding="utf-8")
    folders = {}
    for jobs, environment in ARMS.items():
        folders[jobs] = folder = base / jobs
        folder.mkdir()
        places = os.pathsep.join([str(base), os.environ.get("PYTHONPATH", "")])
        variables = {"PYTHONPATH": places, "ATTEMPTS": str(base / "attempts")}
        variables |= {"OMP_NUM_THREADS": "1"}
        offline = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
        done = subprocess.run(
            [sys.executable, str(base / "whole_path.py"), str(inputs), jobs],
            cwd=folder,
            env=offline | variables | environment | SECRETS,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (folder / "said").write_text(done.stdout + done.stderr, encoding="utf-8")
    return folders


def test_the_whole_path_asks_for_no_network(arms: dict[str, Path]) -> None:
    attempts = arms["1"].parent / "attempts"
    assert not attempts.exists(), attempts.read_text(encoding="utf-8")


def test_the_block_works(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED, encoding="utf-8")
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    environment = {"PYTHONPATH": str(tmp_path), "ATTEMPTS": str(tmp_path / "attempts")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert "127.0.0.1" in (tmp_path / "attempts").read_text(encoding="utf-8")


def test_secrets_are_in_no_file_and_in_nothing_said(arms: dict[str, Path]) -> None:
    count = 0
    for folder in arms.values():
        for path in folder.rglob("*"):
            if path.is_file():
                count += 1
                content = path.read_bytes()
                assert not [name for name, value in SECRETS.items() if value.encode() in content]
    assert count > 60


def test_other_processes_zones_and_locales_change_nothing(arms: dict[str, Path]) -> None:
    alone, parallel = (left(folder) for folder in arms.values())
    assert alone.keys() == parallel.keys()
    masks = [name for name in alone if name.endswith(".mask.safetensors")]
    assert len(masks) >= 3
    for name in masks:
        assert Mask.load(arms["1"] / name).hash == Mask.load(arms["2"] / name).hash
    differing: set[str] = set()
    for name in alone:
        if alone[name] == parallel[name]:
            continue
        if name.endswith(".parquet"):
            assert read_parquet(arms["1"] / name) == read_parquet(arms["2"] / name), name
        else:
            differing.add(name)
    # These say when and how they were made; what they found is the same.
    timed = {f"run/{n}" for n in ("manifest.json", "results.json", "report.html", "report.json")}
    assert differing <= timed | {"run/report.md", "run/metrics.jsonl", "said"}
    found: list[Any] = []
    for folder in arms.values():
        results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
        found.append({key: results[key] for key in ("claims", "studies")})
    assert found[0] == found[1]
