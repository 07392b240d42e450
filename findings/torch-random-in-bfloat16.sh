#!/usr/bin/env bash
# torch 2.13.0: `torch.rand_like(weight) < fraction` on bfloat16 weights draws too many places, for small
# fractions by an order of magnitude, and says nothing.
#
# One would expect a share of `fraction`, as in float32. But one draw in 500 is exactly 0 in bfloat16, and
# one in 4,000 in float16, which is below any fraction. Seen here, of four million draws:
#   wanted   float32    float16    bfloat16
#   .0001    .0001      .0003      .002
#   .001     .001       .0012      .003
#   .01      .01        .0102      .012
# A random control of "equal size" that is made this way is twenty times too large at one weight in ten
# thousand. Draw in float32, or draw the exact number of places.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import torch

print("torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
LEAST_AND_MOST = {  # how many times more places than were wanted
    (torch.float32, 1e-4): (0.8, 1.2), (torch.float32, 1e-3): (0.9, 1.1),
    (torch.float32, 1e-2): (0.98, 1.02),
    (torch.float16, 1e-4): (2.5, 4.5), (torch.float16, 1e-3): (1.1, 1.4),
    (torch.float16, 1e-2): (1.0, 1.05),
    (torch.bfloat16, 1e-4): (17, 24), (torch.bfloat16, 1e-3): (2.5, 3.5),
    (torch.bfloat16, 1e-2): (1.1, 1.3),
}
draws = {
    dtype: torch.rand(4_000_000, dtype=dtype, generator=generator)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
}
for (dtype, wanted), (least, most) in LEAST_AND_MOST.items():
    share = (draws[dtype] < wanted).double().mean().item()
    print(f"{dtype}: wanted {wanted}, drawn {share:.5f}, {share / wanted:.1f} times")
    assert least < share / wanted < most, (dtype, wanted, share)
zeros = (draws[torch.bfloat16] == 0).double().mean().item()
print(f"bfloat16: exactly 0 is one draw in {1 / zeros:.0f}")
assert 450 < 1 / zeros < 580, zeros
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
