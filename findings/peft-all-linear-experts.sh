#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0: `target_modules="all-linear"` reaches other parts of a mixture
# of experts from architecture to architecture, and says so of none.
#
# One would expect the same kinds of weights everywhere: either all experts get an adapter or none,
# and no router does. Seen here, on models of two blocks with random weights:
#   Mixtral      the experts and the router (mlp.gate) get one: all matrices of the blocks
#   gpt-oss      attention alone: 32 % of the matrices' weights, no expert, no router
#   Qwen2-MoE    attention and the shared expert with its gate: 43 %, no routed expert
#   Granite MoE  attention alone: 33 %
# So "fine-tune all linear layers" is an attack on, or a repair of, a third of the weights in one
# model and of all of them, routing included, in the next. Name the modules and the expert
# parameters (`target_parameters`) by hand, and report the share that is adapted.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import warnings

import peft
import transformers

warnings.simplefilter("ignore")
small = dict(
    vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)
experts = dict(num_local_experts=4, num_experts_per_tok=2)
routed = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
              shared_expert_intermediate_size=16)
ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
EXPECTED = {
    "Mixtral": ("MixtralConfig", experts, 1.00, {"mlp.experts", "mlp.gate"}),
    "gpt-oss": ("GptOssConfig", experts | {"head_dim": 8}, 0.32, set()),
    "Qwen2-MoE": ("Qwen2MoeConfig", routed, 0.43, {
        *(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")),
        "mlp.shared_expert_gate",
    }),
    "Granite MoE": ("GraniteMoeConfig", experts, 0.33, set()),
}
print("peft", peft.__version__, "transformers", transformers.__version__)
for name, (config, options, share, beside) in EXPECTED.items():
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**small, **options)
    )
    matrices = {
        key: weight.numel()
        for key, weight in model.named_parameters()
        if ".layers." in key and weight.dim() >= 2
    }
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    )
    adapted = {
        key.removeprefix("base_model.model.").replace(".base_layer", "")
        for key, module in tuned.named_modules()
        if hasattr(module, "lora_A")
    }
    kinds = {key.split(".", 3)[-1] for key in adapted}
    reached = sum(size for key, size in matrices.items() if key.rpartition(".")[0] in adapted)
    found = reached / sum(matrices.values())
    print(f"{name}: {found:.0%} of the blocks' matrices; {', '.join(sorted(kinds))}")
    assert kinds == ATTENTION | beside, (name, sorted(kinds))
    assert abs(found - share) < 0.01, (name, found)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
