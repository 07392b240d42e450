#!/usr/bin/env bash
# transformers 5.23.0: asking a mixture of experts for its router logits changes its loss, in evaluation too.
#
# One would expect an extra output to be extra, as `output_hidden_states` is. Seen here, on random models
# in eval() and without gradients, `model(ids, labels=ids).loss` and the same with
# `output_router_logits=True`:
#   Mixtral      4.11, and .002 more, which is the balancing loss times the config's coefficient
#   Mixtral with router_aux_loss_coef=0.1     4.11, and .2 more
# The logits are the same to the bit. exp(loss) is then no perplexity, and a comparison of two models
# measures how evenly they route. A checkpoint's config can switch it on by itself. Compute the
# likelihood from the logits.
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
ids = torch.arange(10)[None]
for coefficient in (0.001, 0.1):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        router_aux_loss_coef=coefficient,
    )).eval()
    with torch.no_grad():
        plain = model(ids, labels=ids)
        routed = model(ids, labels=ids, output_router_logits=True)
        likelihood = torch.nn.functional.cross_entropy(plain.logits[0, :-1], ids[0, 1:])
        model.config.output_router_logits = True
        configured = model(ids, labels=ids)
    added = (routed.loss - plain.loss).item()
    print(f"coefficient {coefficient}: loss {plain.loss:.4f}, with router logits {routed.loss:.4f}")
    assert torch.equal(plain.logits, routed.logits)
    assert torch.allclose(plain.loss, likelihood)
    assert 1.5 < added / coefficient < 3, added
    assert torch.equal(configured.loss, routed.loss)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
