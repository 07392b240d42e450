#!/usr/bin/env bash
# gguf 0.19.0: in Q4_0 and Q5_0 the weight opposite to the largest one of its block loses an eighth, or a
# sixteenth, of its size: a block that holds 1 and -1 comes back as 1 and -.875.
#
# One would expect a format without an offset to treat both signs alike. Its codes go from -8 to 7, and the
# scale is set so that the largest weight by size takes -8; its opposite would be 8, which does not exist.
# Seen here, for a block of 1, -1 and zeros, and for its negative:
#   Q4_0     1, -.875      and   -1, .875
#   Q5_0     1, -.9375     and   -1, .9375
#   Q8_0     1, -1 within 1e-4, both ways
# The error is that of the largest weights, of one sign in each block, and which sign depends on the block:
# a difference of two models, or a weight and its negative, do not cancel after such a file.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "gguf==0.19.0" "numpy>=2,<3"

cat >"$folder/look.py" <<'PY'
from importlib.metadata import version

import numpy
from gguf import GGMLQuantizationType as Type
from gguf import quants

print("gguf", version("gguf"))
block = numpy.zeros((1, 32), numpy.float32)
block[0, :2] = 1, -1
OPPOSITE = {Type.Q4_0: 0.875, Type.Q5_0: 0.9375, Type.Q8_0: 1.0}
for kind, expected in OPPOSITE.items():
    for sign in (1, -1):
        decoded = quants.dequantize(quants.quantize(sign * block, kind), kind)[0]
        print(f"{kind.name}: {sign}, {-sign} came back as {decoded[0]:.4f}, {decoded[1]:.4f}")
        assert abs(decoded[0] - sign) < 1e-3, kind
        assert abs(decoded[1] + sign * expected) < 1e-3, kind
        assert not decoded[2:].any()
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
