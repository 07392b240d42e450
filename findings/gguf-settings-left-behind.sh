#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: `from_pretrained(folder, gguf_file=...)` does not read the factors in
# `rope_freqs.weight`, by which llama.cpp stretches positions (Llama 3.1 and later), and says nothing.
#
# One would expect a tensor of the file to be used or to be named as unused. Seen here, on a small file of the
# architecture llama with factors of 8:
#   frequencies of the loaded model      those of a file without the tensor
#   rope_parameters of its config        rope_type "default"
#   warnings                             none
# So the loaded model turns positions by other angles than the model in the file, and its numbers are
# another model's. Set rope_parameters by hand from the original config.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "gguf==0.19.0" "accelerate==1.15.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import contextlib
import io
import logging
import pathlib
import sys
import warnings

import gguf
import numpy
import torch
import transformers

print("transformers", transformers.__version__)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
SHAPES = {
    "token_embd": (64, 32), "output_norm": (32,), "output": (64, 32),
    "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
    "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
    "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32),
    "blk.0.ffn_down": (32, 48),
}


def write(name: str, factors: bool) -> None:
    writer = gguf.GGUFWriter(folder / name, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(64)
    draws = numpy.random.default_rng(0)
    for key, shape in SHAPES.items():
        writer.add_tensor(f"{key}.weight", draws.normal(size=shape).astype(numpy.float32))
    if factors:
        writer.add_tensor("rope_freqs.weight", numpy.full(4, 8, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


messages = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: messages.append(record.getMessage())
transformers.logging.add_handler(handler)
models = {}
for name, factors in {"plain.gguf": False, "stretched.gguf": True}.items():
    write(name, factors)
    before = len(messages)
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        models[name] = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    words = [str(warning.message) for warning in caught] + messages[before:]
    print(f"{name}: frequencies {models[name].model.rotary_emb.inv_freq.tolist()}, warnings {words}")
    assert not words, words
plain, stretched = models.values()
assert torch.equal(plain.model.rotary_emb.inv_freq, stretched.model.rotary_emb.inv_freq)
assert stretched.config.rope_parameters["rope_type"] == "default"
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/model"
