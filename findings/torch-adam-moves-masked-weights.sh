#!/usr/bin/env bash
# torch 2.13.0: a weight whose gradient is set to zero at each step still moves under Adam and AdamW.
#
# One would expect a gradient of exactly 0 to leave a weight alone, which it does under plain SGD. Seen
# here: a weight is trained for one step, then cut to 0, and gets gradient 0 from there on.
#   SGD                                        0 after ten steps
#   SGD with momentum, Adam, AdamW             moved, by more than half a learning rate at the next step
#   AdamW, weight 1.0, gradient always 0       .90 after ten steps: decay shrinks what was to stay
# So a hook that masks gradients neither holds a cut nor freezes a weight. Set the values back after each
# step, or take the weight out of the optimizer.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import torch

print("torch", torch.__version__)
RATE = 0.1
OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=RATE),
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=RATE, momentum=0.9),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=RATE),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=RATE, weight_decay=0.1),
}
for name, make in OPTIMIZERS.items():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = make([weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    with torch.no_grad():
        weight.zero_()
    weight.grad = torch.zeros(1)
    optimizer.step()
    print(f"{name}: {weight.item():+.4f} after one step with gradient 0")
    assert (weight.item() == 0) == (name == "SGD"), name
    assert name == "SGD" or abs(weight.item()) > RATE / 2, name

weight = torch.nn.Parameter(torch.ones(1))
optimizer = OPTIMIZERS["AdamW"]([weight])
for _ in range(10):
    weight.grad = torch.zeros(1)
    optimizer.step()
print(f"AdamW, never a gradient: 1 became {weight.item():.4f}")
assert 0.89 < weight.item() < 0.92
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
