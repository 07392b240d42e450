#!/usr/bin/env bash
# transformers 5.23.0: a cache of keys and values that is passed to a model is changed in place, also with
# `use_cache=False`, so the second of two answers that are scored from one cached prompt is scored after
# the first.
#
# One would expect an argument to be left alone, or `use_cache=False` to leave it. Seen here, on a Llama
# with random weights, a prompt of 10 tokens and two answers of 2:
#   length of the cache after the prompt, the first and the second answer      10, 12, 14
#   logits of the first answer     those without a cache, within 1e-6
#   logits of the second answer    others, by 2e-2; those of prompt + first answer + second answer
#   with use_cache=False           the same
# No error and no warning: a choice among several options depends on the order in which they are scored.
# Copy the cache for each answer, or crop it back.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import torch
import transformers

print("transformers", transformers.__version__)
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)).eval()
prompt = torch.arange(10)[None]
first, second = torch.tensor([[11, 12]]), torch.tensor([[13, 14]])


def off(logits: torch.Tensor, *tokens: torch.Tensor) -> float:
    whole = model(torch.cat(tokens, dim=1)).logits[:, -2:]
    return (logits - whole).abs().max().item()


for use_cache in (True, False):
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values
        lengths = [cache.get_seq_length()]
        logits = {}
        for name, answer in {"first": first, "second": second}.items():
            result = model(answer, past_key_values=cache, use_cache=use_cache)
            logits[name] = result.logits
            lengths.append(cache.get_seq_length())
        wrong = off(logits["second"], prompt, second)
        print(f"use_cache={use_cache}: lengths {lengths}, second answer off by {wrong:.4f}")
        assert lengths == [10, 12, 14], lengths
        assert off(logits["first"], prompt, first) < 1e-6
        assert wrong > 1e-2, wrong
        assert off(logits["second"], prompt, first, second) < 1e-6
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
