#!/usr/bin/env bash
# transformers 5.23.0: `tie_word_embeddings: true` in config.json does not tie the head to the embeddings if
# the file holds a head of its own; equal values in both places tie them.
#
# One would expect the config to decide, as its name says. Seen here, for a folder of a small Llama with
# both tensors in the file and the config set to true:
#   two tensors with different values      not tied, with a warning; the config goes on saying true
#   equal but for one value                the same
#   two tensors with equal values          tied: one tensor in memory
# So one value that was edited in one of two equal tensors of the file unties the whole head, and a reader that
# follows the config has another model. Look at `lm_head.weight is embed_tokens.weight`.
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
from safetensors.torch import load_file, save_file

print("transformers", transformers.__version__)
folder = pathlib.Path(sys.argv[1])
transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
)).save_pretrained(folder)
config = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
weights = load_file(folder / "model.safetensors")
embeddings = weights["model.embed_tokens.weight"]
edited = embeddings.clone()
edited[0, 0] = 0
messages = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: messages.append(record.getMessage())
transformers.logging.add_handler(handler)
HEADS = {
    "another": (weights["lm_head.weight"], False),
    "equal": (embeddings.clone(), True),
    "equal but for one value": (edited, False),
}
for name, (head, tied) in HEADS.items():
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    messages.clear()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    one = model.lm_head.weight is model.model.embed_tokens.weight
    said = [message for message in messages if "NOT tie" in message]
    print(f"{name}: {'tied' if one else 'not tied'}; the config says {model.config.tie_word_embeddings}; "
          f"warnings {len(said)}")
    assert one == tied and model.config.tie_word_embeddings, name
    assert len(said) == (0 if tied else 1), messages
    assert torch.equal(model.lm_head.weight, head)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/model"
