#!/usr/bin/env bash
# transformers 5.23.0: `mlp.experts.gate_up_proj` has its two halves one after the other in Mixtral and every
# other column in gpt-oss, and a unit whose "up" weights are zero is off in Mixtral and on in gpt-oss.
#
# One would expect one name in one library to mean one layout. Seen here, on one block of each with random
# weights, by the size of what the experts give out:
#                                              Mixtral    gpt-oss
#   shape (experts, ...)                       96 x 32    32 x 96
#   first half zeroed                          0          not 0
#   every other row or column zeroed           not 0      0, from the first on
#   second half, or the others, zeroed         0          not 0: it computes (up + 1) x gate
# A neuron that is cut by the layout of the other model loses half of itself and half of a neighbour, and
# nothing raises. Read the class's forward before reading its weights.
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
transformers.logging.set_verbosity_error()
small = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, head_dim=8,
)
first, second = slice(0, 48), slice(48, 96)
even, odd = slice(0, None, 2), slice(1, None, 2)
EXPECTED = {  # is the output of the experts 0?
    "Mixtral": {"first half": True, "second half": True, "even": False, "odd": False},
    "GptOss": {"first half": False, "second half": False, "even": True, "odd": False},
}
PLACES = {"first half": first, "second half": second, "even": even, "odd": odd}
for name, expected in EXPECTED.items():
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**small)
    experts = transformers.AutoModelForCausalLM.from_config(config).model.layers[0].mlp.experts
    fused = experts.gate_up_proj
    axis = 1 if name == "Mixtral" else 2
    assert fused.shape[axis] == 96, fused.shape
    states = torch.randn(6, 32)
    chosen, shares = torch.randint(0, 4, (6, 2)), torch.full((6, 2), 0.5)
    with torch.no_grad():
        for key, parameter in experts.named_parameters():
            parameter.zero_() if "bias" in key else parameter.normal_()
        intact = fused.clone()
        found = {}
        for place, part in PLACES.items():
            fused.copy_(intact)
            fused[(slice(None),) * axis + (part,)] = 0
            size = experts(states, chosen, shares).abs().max().item()
            found[place] = size == 0
            print(f"{name}, {tuple(fused.shape)}, {place} zeroed: largest output {size:.3f}")
    assert found == expected, (name, found)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
