#!/usr/bin/env bash
# safetensors 0.8.0: `safetensors.numpy.save_file` writes other numbers than it was given, without a word, if
# the array is a transposed view, in Fortran order, or a slice of columns.
#
# One would expect the values, as numpy.save keeps them, or an error, as `safetensors.torch.save_file` raises
# for tensors that are not contiguous. Seen here, for 2 x 3 numbers 0 to 5:
#   array.T (3 x 2)                    comes back with the right shape and 0 1 2 3 4 5 row by row: not transposed
#   numpy.asfortranarray(array)        comes back as 0 3 1 / 4 2 5
#   array[:, :2]                       comes back as 0 1 / 2 3: the 2 belongs to a column that was left out
#   safetensors.torch, transposed      ValueError
# What lies in memory is written as it lies, and the shape is that of the view. Weights that are stored the
# other way round, as GPT-2's are, come through such a view. Use numpy.ascontiguousarray.
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

print("safetensors", safetensors.__version__, "numpy", numpy.__version__)
array = numpy.arange(6.0).reshape(2, 3)
EXPECTED = {
    "as it is": (array, [[0, 1, 2], [3, 4, 5]], True),
    "transposed": (array.T, [[0, 1], [2, 3], [4, 5]], False),
    "Fortran order": (numpy.asfortranarray(array), [[0, 3, 1], [4, 2, 5]], False),
    "two columns": (array[:, :2], [[0, 1], [2, 3]], False),
    "transposed, made contiguous": (
        numpy.ascontiguousarray(array.T), [[0, 3], [1, 4], [2, 5]], True
    ),
}
for name, (given, expected, right) in EXPECTED.items():
    save_file({"weight": given}, sys.argv[1])
    loaded = load_file(sys.argv[1])["weight"]
    print(f"{name}: given {given.tolist()}, came back as {loaded.tolist()}")
    assert loaded.tolist() == expected, name
    assert numpy.array_equal(loaded, given) == right, name
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/weights.safetensors"
