#!/usr/bin/env bash
# safetensors 0.8.0: `load_file` gives tensors back neither in the order in which they were saved nor in that
# of `safe_open(...).keys()`: by the width of their dtype first, then by name.
#
# One would expect a dict to come back in its order, and the two readers of one file to agree. Seen here, for
# z, a, layers.10, layers.2 in float32 and h in float16, saved in this order:
#   load_file           a, layers.10, layers.2, z, h
#   safe_open.keys()    a, h, layers.10, layers.2, z
# A zip of `load_file(...).values()` with a model's parameters pairs other tensors, without an error where
# the shapes agree, as those of equal layers do; and casting one tensor moves it to the end. Go by name.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "safetensors==0.8.0" "numpy>=2,<3"

cat >"$folder/look.py" <<'PY'
import sys

import numpy
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__)
one = numpy.ones(1, numpy.float32)
saved = {"z": one, "a": one, "layers.10": one, "layers.2": one, "h": one.astype(numpy.float16)}
save_file(saved, sys.argv[1])
with safetensors.safe_open(sys.argv[1], "numpy") as reader:
    keys = list(reader.keys())
loaded = list(load_file(sys.argv[1]))
print("saved    ", list(saved), "\nload_file", loaded, "\nkeys     ", keys)
assert loaded == ["a", "layers.10", "layers.2", "z", "h"]
assert keys == ["a", "h", "layers.10", "layers.2", "z"]
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/weights.safetensors"
