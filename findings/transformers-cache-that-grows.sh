#!/usr/bin/env bash
# transformers 5.23.0: with `use_cache=False` a model still writes to a cache of keys and values that is passed
# in, so the second of two answers that are scored from one cached prompt is scored after the first.
#
# One would expect `use_cache=False` to leave a cache as it is: where none is passed, none comes back. Seen
# here, on a Llama with random weights, a prompt of 10 tokens and two answers of 2:
#   length of the cache after the prompt, the first and the second answer      10, 12, 14
#   logits of the first answer     those without a cache, within 1e-6
#   logits of the second answer    others, by 2e-2; those of prompt + first answer + second answer
#   with use_cache=True            the same to the bit
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


written = []
for use_cache in (True, False):
    with torch.no_grad():
        alone = model(prompt, use_cache=use_cache).past_key_values
        assert (alone is None) == (not use_cache)
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
    written.append(logits["second"])
assert torch.equal(*written)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
