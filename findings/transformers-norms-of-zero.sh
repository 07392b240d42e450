#!/usr/bin/env bash
# transformers 5.23.0: a norm weight of 0 switches a norm off in some architectures and means "times 1" in
# others, also within one family.
#
# One would expect weight 0 to give 0: the names and shapes are the same, `input_layernorm.weight` in all but
# OLMo 2, and the successor of a model usually keeps its norm. Seen here, the root mean square of what the
# first norm gives out after its weight was set to 0:
#   0     Llama, Qwen3, OLMo 2, Cohere, Gemma 4
#   1     Gemma, Gemma 2, Gemma 3, Qwen3-Next, Nemotron: they multiply by 1 + weight
# So a zeroed norm cuts the path behind it here and passes it on there, a scale that is folded into the next
# matrix is off by one, and a weight decay that reaches norms pulls their scale to 1 in Gemma 3 and to 0 in
# Gemma 4. Look at the class before touching a norm.
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
    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
NEXT = dict(
    num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
)
OFF = {"Llama": "Llama", "Qwen3": "Qwen3", "OLMo 2": "Olmo2", "Cohere": "Cohere", "Gemma 4": "Gemma4Text"}
SCALE_OF_ONE = {
    "Gemma": "Gemma", "Gemma 2": "Gemma2", "Gemma 3": "Gemma3Text", "Qwen3-Next": "Qwen3Next",
    "Nemotron": "Nemotron",
}
for name, config in {**OFF, **SCALE_OF_ONE}.items():
    options = small | (NEXT if config == "Qwen3Next" else {})
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{config}Config")(**options)
    )
    norms = {
        key: module for key, module in model.named_modules()
        if key.endswith(("layers.0.input_layernorm", "layers.0.post_attention_layernorm"))
    }
    norm = norms[min(norms)]
    states = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.zero_()
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()
        size = norm(states).pow(2).mean().sqrt().item()
    print(f"{name}: {type(norm).__name__}, size of its output with weight 0: {size:.3f}")
    assert abs(size - (0 if name in OFF else 1)) < 0.01, (name, size)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
