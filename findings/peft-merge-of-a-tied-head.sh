#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0: where the head is tied to the embeddings, merging a LoRA on either
# gives another model than the one that was trained; with `ensure_weight_tying=True`, which PEFT's warning
# asks for, it adds the adapter twice.
#
# One would expect the merged model to compute what the adapter did; for every other matrix it does, within
# rounding. Seen here, on a Llama with tied embeddings, logits with the adapter against those merged:
#   up_proj                                     differ by less than 1e-5
#   lm_head                                     by more than .5: the adapter goes into the inputs, too
#   embed_tokens                                by more than .5: and into the head
#   either, with ensure_weight_tying=True       by more than .5: the shared matrix gets twice the adapter
# The first two warn of "complications" and name ensure_weight_tying; with it there is no warning. What was
# evaluated before merging is not what is shipped. Give the head a copy of the weights before merging, or
# keep both out of the adapter.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import warnings

import peft
import torch
import transformers

print("peft", peft.__version__, "transformers", transformers.__version__)
ids = torch.arange(10)[None]
CASES = {  # target, ensure_weight_tying: how often its matrix gets the adapter, does PEFT warn
    ("up_proj", False): (1, False),
    ("lm_head", False): (1, True),
    ("embed_tokens", False): (1, True),
    ("lm_head", True): (2, False),
    ("embed_tokens", True): (2, False),
}
for (target, ensured), (times, warned) in CASES.items():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = peft.LoraConfig(target_modules=[target], ensure_weight_tying=ensured)
        tuned = peft.get_peft_model(model, settings).eval()
    layer = next(module for name, module in tuned.named_modules() if name.endswith(f".{target}"))
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if "lora_B" in key or "lora_embedding_" in key:
                parameter.normal_(std=0.1)
        adapted = tuned(ids).logits
        before, adapter = layer.weight.clone(), layer.get_delta_weight("default")
        with warnings.catch_warnings(record=True) as more:
            warnings.simplefilter("always")
            merged = tuned.merge_and_unload()
        off = (merged(ids).logits - adapted).abs().max().item()
    matrix = merged.model.layers[0].mlp.up_proj if target == "up_proj" else merged.lm_head
    change = matrix.weight - before
    words = [str(warning.message) for warning in [*caught, *more] if "tying" in str(warning.message)]
    print(f"{target}, ensure_weight_tying={ensured}: logits off by {off:.2g}, "
          f"{change.norm() / adapter.norm():.2f} times the adapter, warnings {len(words)}")
    assert torch.allclose(change, times * adapter, atol=1e-6)
    assert (len(words) == 1) == warned, words
    assert off < 1e-5 if target == "up_proj" else off > 0.5, off
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
