"""Make the quick demonstration twice, once with a processor's instructions limited from outside.

    python benchmarks/same_bits.py -o build/same-bits
    python benchmarks/same_bits.py --emulated Haswell EPYC

The portable mode promises the same bits (docs/design/organism.md). Both runs train an organism of
their own and go to their report; then weights, scores, masks, records and everything that the
report says are compared, but for names of folders and times. It ends with 1 if anything differs.

With names of processors a tiny organism is trained here and on each of these, as QEMU's user mode
(`qemu-x86_64`) computes it: that has neither this processor's instructions nor its estimates of
1/x and 1/√x, which differ by maker. Some minutes each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from resect.files.reading import read_json

LIMITS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# What says where and when a run was made, and not what it found.
CIRCUMSTANCES = {"command", "config", "data", "finished", "rebuild", "seconds"}
TINY = """
import hashlib, tempfile
from pathlib import Path
from resect.machine.portable import pin
state = pin()
from resect.organism import Recipe, build
from safetensors.torch import load_file
with tempfile.TemporaryDirectory() as folder:
    built = build(seed=0, stages=("aligned",), recipe=Recipe.tiny(), root=Path(folder) / "zoo")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(built.stage("aligned") / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
print(state.reason or digest.hexdigest())
"""


def differences(one: Path, two: Path) -> Iterator[str]:
    """Yield each file of two folders that one lacks or that says something else.

    Tensors are compared by their bits, tables by their bytes, results by their values; other files
    (figures, pages, notes of where things lie, locks) follow from these or say nothing.

    Args:
        one: A folder.
        two: Another one.
    """
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if _counts(path)}
        for folder in (one, two)
    ]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name}: in one of the folders alone"
    for name in sorted(names[0] & names[1]):
        if _content(one / name) != _content(two / name):
            yield f"{name}: differs"


def _counts(path: Path) -> bool:
    """Tell whether a file must be the same in both folders."""
    return path.suffix in (".safetensors", ".parquet", ".csv") or path.name == "results.json"


def _content(path: Path) -> Any:
    """Return what must be the same in a file that counts."""
    if path.suffix == ".safetensors":
        return {
            name: (
                tensor.dtype,
                tensor.shape,
                bytes(tensor.reshape(-1).view(torch.uint8).numpy().data),
            )
            for name, tensor in load_file(path).items()
        }
    if path.name != "results.json":
        return path.read_bytes()
    results = dict(read_json(path))
    origin = results.pop("provenance")
    return results, {name: origin[name] for name in origin if name not in CIRCUMSTANCES}


def emulated(processors: Sequence[str]) -> int:
    """Compare a tiny organism's weights with those that other processors come to; 1 if they differ.

    Args:
        processors: Names that `qemu-x86_64 -cpu help` lists.
    """
    found = {}
    for processor in ("", *processors):
        prefix = ["qemu-x86_64", "-cpu", processor] if processor else []
        done = subprocess.run(
            [*prefix, sys.executable, "-c", TINY], capture_output=True, text=True, check=True
        )
        found[processor or "here"] = done.stdout.splitlines()[-1]
        print(f"{processor or 'here'}: {found[processor or 'here']}", flush=True)
    return int(len(set(found.values())) > 1)


def main(words: list[str] | None = None) -> int:
    """Make both runs and compare them; 1 if they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("build/same-bits"))
    parser.add_argument("--emulated", nargs="+", metavar="PROCESSOR", help="train on these instead")
    given = parser.parse_args(words)
    if given.emulated:
        return emulated(given.emulated)
    folder = given.output.absolute()
    for name, limits in (("plain", {}), ("limited", LIMITS)):
        place = folder / name
        settings = os.environ | {"RESECT_CACHE": str(place / "cache")} | limits
        command = [sys.executable, "-m", "resect", "demo", "--quick", "-o", str(place / "run")]
        print(" ".join(f"{key}={value}" for key, value in limits.items()) or "as it is", flush=True)
        subprocess.run(command, env=settings, check=True)
    compared = list(filter(_counts, (folder / "plain").rglob("*")))
    found = list(differences(folder / "plain", folder / "limited"))
    print(*found, f"{len(compared)} files compared, {len(found)} differ", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
