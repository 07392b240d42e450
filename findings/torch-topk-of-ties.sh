#!/usr/bin/env bash
# torch 2.13.0 on a CPU: where scores tie, `torch.topk(scores, 10)` is not part of `torch.topk(scores, 20)`.
#
# One would expect the ten best to be among the twenty best, since nothing but k differs. Seen here, on a
# thousand equal scores: the first ten share no place with the first twenty, because the way of searching
# changes with k. In 100 and in 10,000 equal scores they are nested.
#   1000 equal scores: topk(10) = 0 to 9, topk(20) holds none of them
# Masks of growing size, made by one topk each, are then not nested, and a curve over sizes compares
# different sets; after a relu, or with scores in half precision, ties are common. Break ties by the place:
# a stable sort, once, and its first k.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import torch

print("torch", torch.__version__)
ABSENT = {100: 0, 1_000: 10, 10_000: 0}
for size, expected in ABSENT.items():
    scores = torch.ones(size)
    ten = set(torch.topk(scores, 10).indices.tolist())
    twenty = set(torch.topk(scores, 20).indices.tolist())
    print(f"{size} equal scores: {len(ten - twenty)} of the first ten are not among the first twenty")
    assert len(ten - twenty) == expected, (size, sorted(ten), sorted(twenty))
    order = torch.sort(scores, descending=True, stable=True).indices.tolist()
    assert order == list(range(size))
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
