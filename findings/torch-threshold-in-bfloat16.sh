#!/usr/bin/env bash
# torch 2.13.0: a bfloat16 tensor that is compared with a number is compared with the number rounded to
# bfloat16, so 1.0 >= 1.001 is true. float16 does not do it at this number, and a threshold in a tensor
# of one element gives another answer than the same threshold as a number.
#
# One would expect the comparison to be exact: both sides can be compared in float32 without a loss.
# Seen here, for a tensor that holds 1.0 in bfloat16:
#   >= 1.001                            True
#   == 1.001                            True
#   >= torch.tensor(1.001)              True   (no dimension: treated like the number)
#   >= torch.tensor([1.001])            False  (one dimension: both sides go to float32)
# A quantile that was computed in float32 and is applied to bfloat16 scores with `scores >= quantile.item()`
# lets in values that lie up to .4 % below it: of 65,536 normal scores 682, where 655 are as large as the
# threshold. Convert the scores, or put the threshold in a tensor with a dimension.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import torch

print("torch", torch.__version__)
one = torch.tensor([1.0], dtype=torch.bfloat16)
answers = {
    ">= number": (one >= 1.001).item(),
    "== number": (one == 1.001).item(),
    ">= tensor without a dimension": (one >= torch.tensor(1.001)).item(),
    ">= tensor with a dimension": (one >= torch.tensor([1.001])).item(),
    "float16 >= number": (one.half() >= 1.001).item(),
}
print(answers)
assert list(answers.values()) == [True, True, True, False, False], answers

# A threshold just above the values of one step of bfloat16's grid takes all of them in.
scores = torch.randn(65536, generator=torch.Generator().manual_seed(0)).bfloat16()
wide = scores.float()
threshold = wide.quantile(0.99).item() * 1.0001
exact, rounded = int((wide >= threshold).sum()), int((scores >= threshold).sum())
print(f"threshold {threshold:.5f}: {exact} scores in float32, {rounded} in bfloat16")
assert rounded > exact + 5, (exact, rounded)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
