"""Fuzz every reader of files with atheris, which follows the code that a file takes.

    python tests/reliability/fuzz.py --seconds 600 [--only mask] [--keep FOLDER]

Each reader is given changed copies of good files for a share of the time. It may read a file or
refuse it with a `ResectError`; anything else is a crash, and so are a file that takes longer than
`SLOWEST` seconds and one that takes more than `MOST_MEMORY` MiB. A crash is shown with its
traceback, and its input is kept in FOLDER, from which the next call starts.

atheris is installed by hand (`pip install atheris`): it has wheels for Linux on x86-64 and CPython
3.11 to 3.13 alone. `test_fuzz.py` runs some readers for a moment where it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SLOWEST = 20
MOST_MEMORY = 4096
LONGEST = 16_384
CONFIG = """name: x
models: {aligned: m}
data: {d: rows.jsonl}
targets: {generation: {data: d}}
preserve: {data: d}
evaluation: {probes: {generation: d, likelihood: d}}
studies: {compactness: {fractions: [0.1]}}
"""
PRESET = """name: x
title: x
home: x
licence: x
cite: x
checked: x
columns: {prompt: [a, b], completion: c}
parts: [{split: train, files: [x.jsonl]}]
"""
ROWS = [
    {"prompt": "w1", "completion": "w2", "category": "a", "id": "1", "key": {"accept": ["w2"]}},
    {"prompt": [{"role": "user", "content": "w3"}], "completion": "w4", "prefix_tokens": 1},
]
RECORD = {
    "role": "aligned", "seed": 0, "cut_kind": "intact", "cut_target": "", "cut_category": "",
    "q": 0.0, "probe": "generation", "judge": "exact", "prompt": "w1", "prefix": "", "text": "w2",
    "outcome": "complied", "rule": "exact/key",
}  # fmt: skip
MODEL = {"role": "a", "seed": 0, "fingerprint": "0", "tokenizer": "1", "forced": ""}
MANIFEST = {"data": {"rows.jsonl": "0"}, "versions": {"torch": "2"}, "config": "0", "seeds": [0]}
PARTS = {"launcher": "local", "parts": [{"part": 0, "job": "1", "cells": ["a"]}]}


def readers() -> dict[str, tuple[str, Callable[[Path], Any]]]:
    """Return what is fuzzed: the name of a file, and who reads it in a folder of its own."""
    from resect.data import load_data
    from resect.data.preset import find_preset
    from resect.report import build_report
    from resect.runs.config import load_config
    from resect.runs.launch.status import status
    from resect.runs.reproduce import check_inputs, compare_runs
    from resect.weights.mask import Mask
    from resect.weights.scores import Scores

    return {
        "mask": ("x.mask.safetensors", Mask.load),
        "scores": ("x.scores.safetensors", Scores.load),
        "yaml": ("x.yaml", load_config),
        "preset": ("x.yaml", lambda path: find_preset(str(path))),
        "jsonl": ("x.jsonl", load_data),
        "csv": ("x.csv", load_data),
        "json": ("x.json", load_data),
        "gzip": ("x.jsonl.gz", load_data),
        "parquet": ("x.parquet", load_data),
        "results": ("results.json", lambda path: build_report(path.parent)),
        "record": (
            "records/a.parquet",
            lambda path: build_report(path.parents[1], show_replies=True),
        ),
        "manifest": ("manifest.json", lambda path: check_inputs(path.parent)),
        "model": (
            "models/a-0.json",
            lambda path: compare_runs(path.parents[1], path.parents[1]),
        ),
        "status": ("config.yaml", lambda path: status(path.parent)),
        "parts": ("launch/parts.json", lambda path: status(path.parents[1])),
    }


def write_good(folder: Path) -> None:
    """Write a good file for every reader; together they are a run folder, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    import example_run
    import tiny
    from resect.files.tables import write_parquet
    from resect.weights.candidates import Candidates
    from resect.weights.scores import ScoreMeta, Scores

    model = tiny.build("llama")
    whole = tiny.cut(model, 0.01)
    first = dict(list(whole.tensors.items())[:2])
    type(whole)(first, {"model_id": "m", "parents": []}).save(folder / "x.mask.safetensors")
    candidates = Candidates(0.1, 800)
    for name in ("a", "b"):
        values = torch.rand(400, generator=torch.Generator().manual_seed(0)).reshape(20, 20)
        candidates.add(name, values, values)
    meta = ScoreMeta("snip", "signed", 0.1, "m", "0", "1", "2", 8, 80, "raw", 0, "", 0)
    Scores(candidates.finish(), meta).save(folder / "x.scores.safetensors")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    results = example_run.results()
    results["studies"] = [
        one for one in results["studies"] if one["study"] in ("guard", "transfer")
    ]
    for study in results["studies"]:
        study["tables"] = {name: rows[:3] for name, rows in study["tables"].items()}
    results["claims"] = [claim for study in results["studies"] for claim in study["claims"]]
    texts = {
        "x.yaml": CONFIG, "config.yaml": CONFIG, "preset.yaml": PRESET, "x.jsonl": lines,
        "x.csv": 'prompt,completion\nw1,"w2\nw3"\n', "x.json": json.dumps(ROWS),
        "results.json": json.dumps(results), "manifest.json": json.dumps(MANIFEST),
        "models/a-0.json": json.dumps(MODEL), "launch/parts.json": json.dumps(PARTS),
        "launch/part-0000.json": json.dumps({"state": "running", "seen": 1.0, "cell": "a"}),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist([{"prompt": "w1", "completion": "w2"}] * 3),
                   folder / "x.parquet")  # fmt: skip
    write_parquet(folder / "records" / "a.parquet", [RECORD])


def _scalars(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every part of a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _scalars(inner, (*at, key))


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**63, 10**30, 0.5, float("nan"), "", "x", "../x", "\x00", "\u202e",
    [], [1], {}, {"x": 1}, [[]], "uint8", "float32",
)  # fmt: skip


def _odd(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one part replaced, doubled or gone."""
    *way, last = draw.choice(list(_scalars(value))[1:] or [("x",)])
    inner = value
    for step in way:
        inner = inner[step]
    choice = draw.randrange(4)
    if choice == 0:
        del inner[last]
    elif choice == 1 and isinstance(inner, list):
        inner.append(inner[last])
    else:
        inner[last] = draw.choice(ODD)
    return value


def changed(name: str, data: bytes, most: int, seed: int, mutate: Callable[..., bytes]) -> bytes:
    """Return a changed file; packed ones and those with a header are changed inside, too."""
    draw = random.Random(seed)
    with contextlib.suppress(
        ValueError, LookupError, TypeError, OSError, EOFError, struct.error, zlib.error
    ):
        if draw.random() < 0.3:
            return mutate(data, most)
        if name.endswith(".safetensors"):
            length = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8 : 8 + length])
            if draw.random() < 0.7:
                facts = _odd(json.loads(header["__metadata__"]["resect"]), draw)
                header["__metadata__"]["resect"] = json.dumps(facts)
            else:
                header = _odd(header, draw)
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + data[8 + length :]
        if name.endswith(".gz"):
            return gzip.compress(mutate(gzip.decompress(data), most))
        if name.endswith(".json"):
            return json.dumps(_odd(json.loads(data), draw)).encode()
        if name.endswith(".jsonl"):
            rows = data.splitlines()
            at = draw.randrange(len(rows))
            rows[at] = json.dumps(_odd(json.loads(rows[at]), draw)).encode()
            return b"\n".join(rows)
    return mutate(data, most)


def fuzz(name: str, seconds: int, keep: Path) -> None:
    """Fuzz one reader until the time is over or it crashes; never returns."""
    import atheris

    with atheris.instrument_imports(include=["resect"]):
        file, read = readers()[name]
    from resect.errors import ResectError

    folder = Path(tempfile.mkdtemp())
    write_good(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    good = folder / ("preset.yaml" if name == "preset" else file)
    (corpus / "good").write_bytes(good.read_bytes())
    if file.startswith("x."):
        place = folder / "alone" / file
        place.parent.mkdir()
    else:
        place = folder / file

    def one(data: bytes) -> None:
        place.write_bytes(data)
        with contextlib.suppress(ResectError), contextlib.redirect_stderr(io.StringIO()):
            read(place)

    def custom(data: bytes, most: int, seed: int) -> bytes:
        return changed(file, data, most, seed, atheris.Mutate)

    atheris.Setup(
        [sys.argv[0], str(corpus), str(keep), f"-max_total_time={seconds}", f"-timeout={SLOWEST}",
         f"-rss_limit_mb={MOST_MEMORY}", f"-max_len={LONGEST}", f"-artifact_prefix={keep}/",
         "-print_final_stats=1"],
        one,
        custom_mutator=custom,
    )  # fmt: skip
    atheris.Fuzz()


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Fuzz each reader in a process of its own, and say how many files it was given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="in all")
    parser.add_argument("--only", help="readers, with commas between")
    parser.add_argument("--keep", type=Path, help="folder of inputs that crashed")
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    keep = arguments.keep or Path(tempfile.mkdtemp())
    if arguments.here:
        keep.mkdir(parents=True, exist_ok=True)
        fuzz(arguments.only, arguments.seconds, keep)
    names = arguments.only.split(",") if arguments.only else list(readers())
    total, crashed = 0, []
    for name in names:
        share = max(1, arguments.seconds // len(names))
        done = subprocess.run(
            [sys.executable, __file__, "--here", "--only", name, "--seconds", str(share),
             "--keep", str(keep / name)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        count = re.search(r"number_of_executed_units:\s+(\d+)", said)
        total += int(count[1]) if count else 0
        say(f"{name}: {count[1] if count else '?'} files, exit {done.returncode}")
        if done.returncode:
            crashed.append(name)
            say(said[-6000:])
    say(f"{total} files in all, {len(crashed)} of {len(names)} readers crashed; kept in {keep}")
    sys.exit(1 if crashed else 0)


if __name__ == "__main__":
    main()
