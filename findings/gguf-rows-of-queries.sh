#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: of a file of the architecture llama the rows of queries and keys come in
# another order than they have in the file; of qwen2 they come as they are.
#
# One would expect a row of the file to be that row of the model, as in the other matrices. llama.cpp turns
# positions in pairs of neighbours in its llama and in halves in others, its converter reorders the rows for
# it, and the reader puts them back. Seen here, on small files with the same random tensors:
#   llama     8 of 32 rows of attn_q and 4 of 16 of attn_k are where the file has them, the others elsewhere
#             in their head; all of attn_v and ffn_up are
#   qwen2     all rows of all four
# A list of weights that was made on the checkpoint cuts, in the file, other weights of the same head, and
# every comparison by shape passes. In a head of d rows the file has row i of the first half at 2i and row
# i of the second at 2i + 1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "gguf==0.19.0" "accelerate==1.15.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import pathlib
import sys

import gguf
import numpy
import transformers

print("transformers", transformers.__version__)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
SHAPES = {
    "token_embd.weight": (64, 32), "output_norm.weight": (32,), "output.weight": (64, 32),
    "blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32), "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_gate.weight": (48, 32), "blk.0.ffn_up.weight": (48, 32),
    "blk.0.ffn_down.weight": (32, 48),
}
BIASES = {"blk.0.attn_q.bias": (32,), "blk.0.attn_k.bias": (16,), "blk.0.attn_v.bias": (16,)}
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "ffn_up": "mlp.up_proj"}
IN_PLACE = {"llama": {"attn_q": 8, "attn_k": 4, "attn_v": 16, "ffn_up": 48},
            "qwen2": {"attn_q": 32, "attn_k": 16, "attn_v": 16, "ffn_up": 48}}


def write(architecture: str) -> dict[str, numpy.ndarray]:
    writer = gguf.GGUFWriter(folder / f"{architecture}.gguf", architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    draws = numpy.random.default_rng(0)
    shapes = SHAPES | (BIASES if architecture == "qwen2" else {})
    tensors = {key: draws.normal(size=shape).astype(numpy.float32) for key, shape in shapes.items()}
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


for architecture, expected in IN_PLACE.items():
    tensors = write(architecture)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"{architecture}.gguf")
    found = {}
    for name, module in NAMES.items():
        filed = tensors[f"blk.0.{name}.weight"]
        loaded = model.get_parameter(f"model.layers.0.{module}.weight").detach().float().numpy()
        found[name] = int((filed == loaded).all(axis=1).sum())
        if architecture == "llama" and name in ("attn_q", "attn_k"):
            heads = filed.reshape(-1, 4, 2, 32)  # head, pair, half, column
            assert (heads.swapaxes(1, 2).reshape(filed.shape) == loaded).all(), name
    print(f"{architecture}: rows that are where the file has them: {found}")
    assert found == expected, found
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/model"
