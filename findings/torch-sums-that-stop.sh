#!/usr/bin/env bash
# torch 2.13.0 on a CPU: in bfloat16, `index_add_` and the gradient of an embedding stop counting at 256;
# `sum`, `cumsum` and `scatter_add_` do not.
#
# One would expect all of them to add up alike, or all to stop. Seen here, a thousand times 1.0:
#   sum, cumsum, scatter_add_                   1000
#   index_add_                                  256
#   gradient of nn.Embedding, one token         256
# bfloat16 has no number between 256 and 258, and 256 + 1 is rounded back; the first three carry the sum
# in float32. Scores that are gathered with `index_add_`, or by the gradient of a token that occurs often,
# are silently too small. Gather in float32.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import torch

print("torch", torch.__version__)
ones = torch.ones(1000, dtype=torch.bfloat16)
here = torch.zeros(1000, dtype=torch.long)
embedding = torch.nn.Embedding(2, 1, dtype=torch.bfloat16)
embedding(here).sum().backward()
sums = {
    "sum": ones.sum().item(),
    "cumsum": ones.cumsum(0)[-1].item(),
    "scatter_add_": torch.zeros(1, dtype=torch.bfloat16).scatter_add_(0, here, ones).item(),
    "index_add_": torch.zeros(1, dtype=torch.bfloat16).index_add_(0, here, ones).item(),
    "embedding": embedding.weight.grad[0].item(),
    "index_add_ in float32": torch.zeros(1).index_add_(0, here, ones.float()).item(),
}
print(sums)
assert list(sums.values()) == [1000, 1000, 1000, 256, 256, 1000], sums
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
