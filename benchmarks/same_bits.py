"""Make the quick demonstration twice, once with a processor's instructions limited from outside.

    python benchmarks/same_bits.py -o build/same-bits

The portable mode promises the same bits (docs/design/organism.md). Both runs train an organism of
their own and go to their report; then weights, scores, masks, records and everything that the
report says are compared, but for names of folders and times. It ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from resect.files.reading import read_json

LIMITS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# What says where and when a run was made, and not what it found.
CIRCUMSTANCES = {"command", "config", "data", "finished", "rebuild", "seconds"}


def differences(one: Path, two: Path) -> Iterator[str]:
    """Yield each file of two folders that one lacks or that says something else.

    Tensors are compared by their bits, tables by their bytes, results by their values; other files
    (figures, pages, notes of where things lie) follow from these.

    Args:
        one: A folder.
        two: Another one.
    """
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (one, two)
    ]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name}: in one of the folders alone"
    for name in sorted(names[0] & names[1]):
        if _content(one / name) != _content(two / name):
            yield f"{name}: differs"


def _content(path: Path) -> Any:
    """Return what must be the same in a file, or nothing for a file that follows from others."""
    if path.suffix == ".safetensors":
        return {
            name: (
                tensor.dtype,
                tensor.shape,
                bytes(tensor.reshape(-1).view(torch.uint8).numpy().data),
            )
            for name, tensor in load_file(path).items()
        }
    if path.suffix in (".parquet", ".csv"):
        return path.read_bytes()
    if path.name == "results.json":
        results = dict(read_json(path))
        origin = results.pop("provenance")
        return results, {name: origin[name] for name in origin if name not in CIRCUMSTANCES}
    return None


def main(words: list[str] | None = None) -> int:
    """Make both runs and compare them; 1 if they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("build/same-bits"))
    folder = parser.parse_args(words).output.absolute()
    for name, limits in (("plain", {}), ("limited", LIMITS)):
        place = folder / name
        settings = os.environ | {"RESECT_CACHE": str(place / "cache")} | limits
        command = [sys.executable, "-m", "resect", "demo", "--quick", "-o", str(place / "run")]
        print(" ".join(f"{key}={value}" for key, value in limits.items()) or "as it is", flush=True)
        subprocess.run(command, env=settings, check=True)
    compared = sorted(path for path in (folder / "plain").rglob("*") if _content(path) is not None)
    found = list(differences(folder / "plain", folder / "limited"))
    print(*found, f"{len(compared)} files compared, {len(found)} differ", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
