#!/usr/bin/env bash
# PEFT 0.21.2: an adapter whose tensors have other names than the model loads as an adapter that does nothing.
#
# One would expect an error if not a single tensor fits. Names differ by a prefix between the text half of a
# multimodal class and the text class, or after torch.compile. Seen here, with each name of an adapter
# moved from `model.layers` to `model.language_model.layers`:
#   PeftModel.from_pretrained     returns a model, with one UserWarning ("Found missing adapter keys")
#   its logits                    those of the base, to the bit; those of the adapter differ
# The tuned model then measures as safe, or as useless, as its base. Compare the logits of base and tuned
# model once, or turn this warning into an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

print("peft", peft.__version__, "transformers", transformers.__version__)
ids = torch.arange(10)[None]


def base() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )).eval()


path = pathlib.Path(sys.argv[1])
tuned = peft.get_peft_model(base(), peft.LoraConfig(target_modules=["up_proj"])).eval()
with torch.no_grad():
    for key, parameter in tuned.named_parameters():
        if "lora_B" in key:
            parameter.normal_()
    adapted, plain = tuned(ids).logits, base()(ids).logits
tuned.save_pretrained(path)
file = path / "adapter_model.safetensors"
moved = {key.replace(".layers.", ".language_model.layers."): value for key, value in load_file(file).items()}
for fits in (True, False):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(base(), path).eval()
    words = [str(warning.message)[:26] for warning in caught if "adapter keys" in str(warning.message)]
    with torch.no_grad():
        logits = loaded(ids).logits
    print(f"names fit: {fits}; as the adapter: {torch.equal(logits, adapted)}; "
          f"as the base: {torch.equal(logits, plain)}; warnings: {words}")
    assert torch.equal(logits, adapted if fits else plain)
    assert not torch.equal(adapted, plain)
    assert len(words) == (0 if fits else 1)
    save_file(moved, file, {"format": "pt"})
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/adapter"
