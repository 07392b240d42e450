#!/usr/bin/env bash
# transformers 5.23.0: `generate(do_sample=False)` still applies the repetition penalty of the checkpoint's
# generation_config.json, so "greedy" replies are not those of the largest logits.
#
# One would expect settings of sampling to be off with sampling: temperature and top_p of the same file are.
# Several public chat models ship a penalty there. Seen here, on a small random Llama in a folder whose
# generation_config.json says temperature .7, top_p .8, repetition_penalty 1.3:
#   do_sample=False                             differs from taking the largest logit at each step
#   do_sample=False, repetition_penalty=1.0     is that, token for token
# Two models with different files are then decoded by different rules under one command, and a model that
# must repeat words of the prompt is hindered. Pass the penalty, and what else the file may set.
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

print("transformers", transformers.__version__)
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
made = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
))
made.generation_config = transformers.GenerationConfig(
    do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.3, pad_token_id=0
)
made.save_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()

prompt = largest = torch.arange(4)[None]
with torch.no_grad():
    for _ in range(40):
        largest = torch.cat([largest, model(largest).logits[:, -1:].argmax(-1)], dim=1)
    options = dict(do_sample=False, max_new_tokens=40, attention_mask=torch.ones_like(prompt))
    greedy = model.generate(prompt, **options)
    plain = model.generate(prompt, repetition_penalty=1.0, **options)
differ = int((greedy != largest).sum())
print(f"{differ} of 40 tokens differ from the largest logits; {int((plain != largest).sum())} without")
assert torch.equal(plain, largest)
assert differ > 0
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/model"
