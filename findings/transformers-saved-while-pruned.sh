#!/usr/bin/env bash
# torch 2.13.0 with transformers 5.23.0: a model that was pruned with `torch.nn.utils.prune` and saved with
# `save_pretrained` comes back with random numbers in exactly the pruned matrices.
#
# One would expect the zeros, the intact weights or an error. Pruning renames `weight` to `weight_orig` and
# `weight_mask`; the file has those, the class looks for `weight`, does not find it and draws it anew.
# Seen here, on a Llama with one matrix cut by half:
#   saving              no word
#   from_pretrained     returns a model; a table on standard error says MISSING and "newly initialized"
#   the matrix          no zeros, no value of the intact one, and others at each loading
# A script whose standard error nobody reads goes on to evaluate noise. Call `prune.remove` before saving,
# and ask for `output_loading_info=True` when loading.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import sys

import torch
import transformers
from torch.nn.utils import prune

print("torch", torch.__version__, "transformers", transformers.__version__)
model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)).eval()
matrix = model.model.layers[0].mlp.up_proj
intact = matrix.weight.detach().clone()
prune.l1_unstructured(matrix, "weight", amount=0.5)
assert (matrix.weight == 0).float().mean() == 0.5
model.save_pretrained(sys.argv[1])

loaded = []
for _ in range(2):
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], output_loading_info=True
    )
    assert info["missing_keys"] == {"model.layers.0.mlp.up_proj.weight"}, info
    loaded.append(again.model.layers[0].mlp.up_proj.weight.detach())
zeros = int((loaded[0] == 0).sum())
same = int((loaded[0] == intact).sum())
print(f"after loading: {zeros} zeros, {same} values of the intact matrix, of {intact.numel()}")
assert zeros == 0 and same < 5
assert not torch.equal(loaded[0], loaded[1])

prune.remove(matrix, "weight")
model.save_pretrained(sys.argv[1])
again = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert (again.model.layers[0].mlp.up_proj.weight == 0).float().mean() == 0.5
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/model"
