#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata give another file at each call, if the metadata has
# two or more keys: the keys are written in random order, in one process too.
#
# One would expect one content to make one file: tensors are sorted, and with one key or none the files are equal
# to the byte. Seen here, of 50 files with the same tensor:
#   metadata with 0 or 1 key      1 kind of file
#   with 2 keys                   2 kinds
#   with 12 keys                  50 kinds, all of one size
#   tensors, and metadata as a dict      the same in all
# A hash of the file then says "changed" of weights that did not: caches miss, uploads repeat, a check
# against a published hash fails for who followed the recipe exactly. `save_pretrained` writes the one key
# "format" and is safe; what adds a second is not. Pack the metadata in one key as JSON, or hash the tensors.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "safetensors==0.8.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import hashlib
import pathlib
import sys

import numpy
import safetensors
from safetensors.numpy import save_file

print("safetensors", safetensors.__version__)
path = pathlib.Path(sys.argv[1])
weight = numpy.arange(3, dtype=numpy.float32)
KINDS = {0: 1, 1: 1, 2: 2, 12: 50}
for keys, expected in KINDS.items():
    metadata = {f"key {number}": str(number) for number in range(keys)} or None
    hashes, sizes = set(), set()
    for _ in range(50):
        save_file({"weight": weight}, path, metadata)
        content = path.read_bytes()
        hashes.add(hashlib.sha256(content).hexdigest())
        sizes.add(len(content))
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata() == metadata
            assert (file.get_tensor("weight") == weight).all()
    print(f"{keys} keys: {len(hashes)} kinds of file of {len(sizes)} size, such as {content[8:70].decode()}")
    assert len(hashes) == expected and len(sizes) == 1, len(hashes)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/weights.safetensors"
