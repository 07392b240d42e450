#!/usr/bin/env bash
# transformers 5.23.0: the last entry of `hidden_states` is not what the last block gives out, but that
# after the final norm; all other entries are before any norm of the head.
#
# One would expect what its docstring promises, n + 1 entries of one kind: the embeddings and the output of
# each of the n blocks. Seen here, on a Llama of two blocks with random weights, the final norm too:
#   hidden_states[1]     is the output of block 1, bit for bit
#   hidden_states[-1]    is norm(output of block 2), bit for bit, and not the output of block 2
#   head(hidden_states[-1])          gives the model's logits
#   head(norm(hidden_states[-1]))    does not, by up to .25, and no error says so
# A loop over layers that puts each entry through norm and head (a logit lens), or takes a difference of
# means from each, is wrong in the last layer alone. Read the last block with a forward hook.
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
blocks, norm, head = model.model.layers, model.model.norm, model.lm_head
outputs = []
for block in blocks:
    block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
with torch.no_grad():
    norm.weight.uniform_(0.5, 3)
    result = model(torch.arange(10)[None], output_hidden_states=True)
    states = result.hidden_states
    assert len(states) == 3 and len(outputs) == 2
    assert torch.equal(states[1], outputs[0])
    assert not torch.allclose(states[-1], outputs[-1], atol=0.1)
    assert torch.equal(states[-1], norm(outputs[-1]))
    assert torch.allclose(head(states[-1]), result.logits)
    twice = (head(norm(states[-1])) - result.logits).abs().max().item()
    print(f"logits are off by up to {twice:.4f} where the norm is applied again")
    assert twice > 0.05
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
