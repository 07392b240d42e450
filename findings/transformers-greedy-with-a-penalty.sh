#!/usr/bin/env bash
# transformers 5.23.0: `generate(do_sample=False)` does not take the most likely token if the checkpoint's
# generation_config.json has a repetition_penalty, as those of published chat models do.
#
# One would expect greedy decoding: the temperature and top_k of the same file do not count then. Seen here, for
# a Llama with random weights and 20 new tokens:
#   a file with temperature and top_k            20 of 20 tokens are the argmax of the logits before them
#   a file with repetition_penalty 1.3           15 are, and from the eighth on the reply is another one
#   the same, repetition_penalty=1.0 passed      20 of 20
# No error, and no warning about the penalty. Two checkpoints of the same weights then give different
# "greedy" replies, and a penalty on what the prompt says falls on those who quote it. Pass
# repetition_penalty=1.0, or a GenerationConfig of your own, where replies are compared.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import json
import logging
import pathlib
import sys

import torch
import transformers

print("transformers", transformers.__version__)
folder = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
)).save_pretrained(folder)
messages = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: messages.append(record.getMessage())
transformers.logging.add_handler(handler)
prompt = torch.arange(10)[None]
replies = {}
CASES = {  # settings in the file, settings of the call, are all tokens the most likely ones?
    "sampling": ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {}, True),
    "penalty": ({"do_sample": True, "repetition_penalty": 1.3}, {}, False),
    "penalty, switched off": ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.0}, True),
}
for name, (filed, called, greedy) in CASES.items():
    (folder / "generation_config.json").write_text(json.dumps(filed))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        whole = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20,
            pad_token_id=0, **called,
        )
        likeliest = model(whole).logits[0, 9:-1].argmax(-1)
    replies[name] = whole[0, 10:].tolist()
    same = int((whole[0, 10:] == likeliest).sum())
    print(f"{name}: {same} of {len(likeliest)} tokens are the most likely ones: {replies[name]}")
    assert (same == 20) if greedy else (same < 18), same
assert replies["sampling"] == replies["penalty, switched off"] != replies["penalty"]
print("warnings:", messages)
assert not any("penalty" in message for message in messages), messages
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/model"
