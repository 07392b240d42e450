#!/usr/bin/env bash
# transformers 5.23.0: what a forward hook on a block gets is a tensor in most architectures and a tuple in
# the older ones, so `output[0]` is all hidden states in one model and those of the first prompt in another.
#
# One would expect one convention in one version; the hooks of most published code take `output[0]`. Seen
# here, on random models of two blocks and a batch of two prompts of five tokens, for `output[0]`:
#   (2, 5, 32)   Bloom, Falcon, GPT-J, GPT-Neo, CodeGen
#   (5, 32)      Llama, Mixtral, gpt-oss, Gemma 2, Qwen3, GPT-2, GPT-NeoX, OPT, Phi, Mamba
# A hook that zeroes `output[0]` then edits the first prompt of each batch alone, and one that averages
# its last position reads `output[0][:, -1]`, a feature and not a token. Neither raises. Inside a block the
# same module name differs too: `mlp` is a tensor in Mixtral and a tuple in gpt-oss.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import warnings

import torch
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__)
small = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
gpt = dict(n_embd=32, n_layer=2, n_head=4)
experts = dict(num_local_experts=4)
ALL, FIRST = (2, 5, 32), (5, 32)
EXPECTED = {
    "Bloom": (dict(n_layer=2, n_head=4), ALL),
    "Falcon": ({}, ALL),
    "GPTJ": (gpt | {"rotary_dim": 4}, ALL),
    "GPTNeo": (dict(num_layers=2, num_heads=4, attention_types=[[["global"], 2]]), ALL),
    "CodeGen": (gpt | {"rotary_dim": 4}, ALL),
    "Llama": ({}, FIRST),
    "Mixtral": (experts, FIRST),
    "GptOss": (experts | {"head_dim": 8}, FIRST),
    "Gemma2": ({"head_dim": 8}, FIRST),
    "Qwen3": ({"head_dim": 8}, FIRST),
    "GPT2": (gpt, FIRST),
    "GPTNeoX": ({}, FIRST),
    "OPT": (dict(word_embed_proj_dim=32, ffn_dim=48), FIRST),
    "Phi": ({}, FIRST),
    "Mamba": ({}, FIRST),
}
parts = {}
for name, (options, shape) in EXPECTED.items():
    config = getattr(transformers, f"{name}Config")(**small | options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    blocks = next(
        module for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 2
    )
    outputs = []
    blocks[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    if name in ("Mixtral", "GptOss"):
        blocks[0].mlp.register_forward_hook(
            lambda module, inputs, output, name=name: parts.update({name: type(output).__name__})
        )
    with torch.no_grad():
        model(torch.arange(10).reshape(2, 5))
    print(f"{name}: {type(outputs[0]).__name__}, output[0] is {tuple(outputs[0][0].shape)}")
    assert tuple(outputs[0][0].shape) == shape, name
assert parts == {"Mixtral": "Tensor", "GptOss": "tuple"}, parts
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
