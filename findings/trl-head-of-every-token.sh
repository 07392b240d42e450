#!/usr/bin/env bash
# TRL 1.16.0: on a CPU `SFTTrainer` puts every position through the output head, those of the prompt and of
# padding too; with a loss on the completion alone that is most of them.
#
# One would expect what the docstring of `add_fused_lm_head` says: only positions "whose next-token label is
# not `-100`". Seen here, for a Llama with 997 tokens, one batch of two rows of 40 and 12 tokens of which the
# last 3 and 2 are the completion, by rows that are multiplied with the whole head in one step:
#   as it is                    78 forward and 78 again backward, of which 5 have a label
#   with `_use_triton` true     5 and 5; the same loss, and gradients to 1e-6
# The head of a small model with a large vocabulary is a good part of its work, so a step on a CPU takes a
# multiple of what it needs; the loss is right. `compact` in trl/trainer/utils.py is on where Triton is used,
# so not on a CPU; the sums behind it take any number of rows, as the second line shows.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.23.0" "trl==1.16.0" "accelerate==1.15.0" "datasets==5.2.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import copy
import sys

import datasets
import tokenizers
import torch
import transformers
import trl
import trl.trainer.utils
from torch.utils._python_dispatch import TorchDispatchMode

print("trl", trl.__version__, "transformers", transformers.__version__)
WORDS = 997
words = {f"w{number}": number for number in range(WORDS)}
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")),
    eos_token="w1", pad_token="w2",
)
ROWS = datasets.Dataset.from_list([
    {"input_ids": list(range(3, 3 + length)), "completion_mask": [0] * (length - scored) + [1] * scored}
    for length, scored in ((40, 3), (12, 2))
])
torch.manual_seed(0)
START = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
    vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, eos_token_id=1, pad_token_id=2,
))


class RowsOfHead(TorchDispatchMode):
    """Note how many rows are multiplied with the whole head."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.mm and tuple(args[1].shape) == (32, WORDS):
            self.rows.append(args[0].shape[0])
        return function(*args, **(kwargs or {}))


def step() -> tuple[list[int], float, torch.Tensor]:
    settings = trl.SFTConfig(
        output_dir=sys.argv[1], completion_only_loss=True, per_device_train_batch_size=2, max_steps=1,
        bf16=False, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True,
    )
    model = copy.deepcopy(START)
    trainer = trl.SFTTrainer(model=model, args=settings, train_dataset=ROWS, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (2, 40) and int((batch["labels"] != -100).sum()) == 5
    expected = model(**batch).loss
    with RowsOfHead() as head:
        loss = trainer.compute_loss(model, batch)
        loss.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    return head.rows, loss.item(), model.lm_head.weight.grad


every, loss, gradient = step()
trl.trainer.utils._use_triton = lambda device: True
labelled, same_loss, same_gradient = step()
print(f"rows through the head: {every}; with `_use_triton` true: {labelled}; loss {loss:.6f} and {same_loss:.6f}")
assert every == [78, 78] and labelled == [5, 5], (every, labelled)
assert abs(loss - same_loss) < 1e-6
assert torch.allclose(gradient, same_gradient, atol=1e-6)
print("as described")
PY
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
"$folder/env/bin/python" "$folder/look.py" "$folder/runs"
