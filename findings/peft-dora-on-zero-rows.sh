#!/usr/bin/env bash
# PEFT 0.21.2: DoRA on a weight with a row of zeros gives NaN: at once in the forward pass, and in the
# merged weights.
#
# One would expect a fresh adapter to change nothing; LoRA without `use_dora` does not. DoRA divides each row
# by its length, and a pruned unit has length 0. Seen here, on a Llama with one row of one matrix at 0:
#   LoRA      logits of the base, to the bit
#   DoRA      every logit NaN, loss NaN, no error
#   DoRA, merged at once      one row of NaN in the matrix, and nothing else
# Structured pruning makes such rows, and so does an unstructured cut that takes a whole row. Leave such
# matrices out of target_modules, or use LoRA.
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
import transformers

warnings.simplefilter("ignore")
print("peft", peft.__version__, "transformers", transformers.__version__)
ids = torch.arange(10)[None]
for use_dora in (False, True):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )).eval()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0
        base = model(ids).logits
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(target_modules=["up_proj"], use_dora=use_dora)
        ).eval()
        result = tuned(ids, labels=ids)
        logits, loss = result.logits, result.loss
        merged = tuned.merge_and_unload().model.layers[0].mlp.up_proj.weight
    broken = [row for row in range(48) if merged[row].isnan().all()]
    share = logits.isnan().float().mean().item()
    print(f"use_dora={use_dora}: {share:.0%} of the logits are NaN; loss {loss:.2f}; merged rows of NaN: {broken}")
    assert torch.equal(logits, base) != use_dora
    assert share == (1 if use_dora else 0) and bool(loss.isnan()) == use_dora
    assert broken == ([3] if use_dora else []) and int(merged.isnan().sum()) == 32 * len(broken)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
