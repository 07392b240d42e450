#!/usr/bin/env bash
# accelerate 1.15.0: a write to a weight that `cpu_offload` or `disk_offload` put away has no effect and raises
# nothing.
#
# One would expect the write to arrive, or an error. The parameter in the model is on the device "meta" and has
# no values; hooks bring the real ones from a store of their own at each forward pass. Seen here, on a Llama
# with one matrix set to 0 after `cpu_offload`:
#   weight.zero_(), weight[0, 0] = 0, weight.mul_(0)     no error
#   logits before and after                              the same to the bit
#   the same without offloading                          other logits
# `device_map="auto"` offloads whenever a model does not fit, so the script that cuts a small model reports
# the intact model for a large one. Look at `weight.device` before writing.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import sys

import accelerate
import torch
import transformers

print("accelerate", accelerate.__version__, "torch", torch.__version__)
ids = torch.arange(10)[None]
for way in ("none", "cpu", "disk"):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )).eval()
    if way == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    if way == "disk":
        accelerate.disk_offload(model, sys.argv[1], execution_device="cpu")
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        before = model(ids).logits
        weight.zero_()
        weight[0, 0] = 0
        weight.mul_(0)
        after = model(ids).logits
    print(f"offloaded to {way}: weight on {weight.device}, logits change: {not torch.equal(before, after)}")
    assert torch.equal(before, after) == (way != "none")
    assert (weight.device.type == "meta") == (way != "none")
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/offloaded"
