#!/usr/bin/env bash
# PEFT 0.21.2: `add_weighted_adapter(combination_type="linear")` of two adapters is not the weighted sum of what
# they add to the weights: the mean of an adapter and a copy of itself adds twice as much.
#
# One would expect "linear" to be linear: the mean of two equal adapters is that adapter, and the result for
# two is the sum of the results for one. The factors A and B are summed apart, each with the root of its
# weight, so their product has cross terms. Seen here, as (what is added) against (the weighted sum), by the
# norm of the difference over that of the sum:
#   linear, one adapter with weight -1                   0
#   linear, an adapter and its copy, .5 and .5           1.0: twice the adapter
#   linear, two random adapters, 1 and 1, or 1 and -1    1.0
#   magnitude_prune and dare_linear, density 1           as linear
#   cat                                                  less than 1e-6, for all of these
# So a merge of adapters, or a skill taken out by a negative weight, leaves another model than the arithmetic on
# weights that papers describe. Use "cat".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import warnings

import peft
import torch

warnings.simplefilter("ignore")
print("peft", peft.__version__)
torch.manual_seed(0)
settings = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
tuned = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 48)), settings, adapter_name="first")
tuned.add_adapter("second", settings)
tuned.add_adapter("copy", settings)
layer = tuned.base_model.model[0]
with torch.no_grad():
    for part in (layer.lora_A, layer.lora_B):
        part["copy"].weight.copy_(part["first"].weight)
CASES = {  # names, weights: how far "linear" is from the weighted sum
    (("first",), (-1.0,)): 0.0,
    (("first", "copy"), (0.5, 0.5)): 1.0,
    (("first", "second"), (1.0, 1.0)): None,
    (("first", "second"), (1.0, -1.0)): None,
}
for (names, weights), expected in CASES.items():
    off = {}
    with torch.no_grad():
        whole = sum(
            weight * layer.get_delta_weight(name) for name, weight in zip(names, weights)
        )
        for way in ("linear", "magnitude_prune", "dare_linear", "cat"):
            options = {"density": 1.0} if way in ("magnitude_prune", "dare_linear") else {}
            together = f"{way} of {' and '.join(names)}, {weights}".replace(".", "_")
            tuned.add_weighted_adapter(
                list(names), list(weights), together, combination_type=way, **options
            )
            added = layer.get_delta_weight(together)
            off[way] = ((added - whole).norm() / whole.norm()).item()
    print(names, weights, {way: round(value, 3) for way, value in off.items()})
    assert off["cat"] < 1e-6
    assert abs(off["linear"] - expected) < 1e-4 if expected is not None else 0.8 < off["linear"] < 1.2
    assert abs(off["magnitude_prune"] - off["linear"]) < 1e-4
    assert abs(off["dare_linear"] - off["linear"]) < 1e-4
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
