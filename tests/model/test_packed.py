"""Packed weights: the same products to the bit, of the weights as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resect.machine import portable, products

PACKED = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from resect.model import packed, take_path

take_path()
torch.manual_seed(0)
found = {}
used = []
packed_for = packed.packed_for
from resect.model import products
products.packed_for = lambda weights: used.append(packed_for(weights)) or used[-1]
count = lambda: sum(matrix is not None for matrix in used)

config = LlamaConfig(
    vocab_size=1000, hidden_size=576, intermediate_size=800, num_hidden_layers=2,
    num_attention_heads=9, num_key_value_heads=3, attention_bias=True, tie_word_embeddings=True,
)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    model = LlamaForCausalLM(config).eval().to(dtype)
    ids = torch.randint(0, 1000, (5, 7), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = model(ids).logits
        used.clear()
        with packed.packed(model, 1000):
            matrices = len(packed._PACKED)
            same = torch.equal(plain, model(ids).logits)
            times = count()
            # A weight that is changed meanwhile counts as it is.
            weight = model.model.layers[1].mlp.up_proj.weight
            saved = weight.detach().clone()
            weight.zero_()
            used.clear()
            changed = model(ids).logits
            weight.copy_(saved)
            fewer = times - count()
        weight.zero_()
        as_changed = torch.equal(changed, model(ids).logits)
        weight.copy_(saved)
        left = len(packed._PACKED)
        with packed.packed(model, packed.LEAST_CALLS - 1):
            few = len(packed._PACKED)
        packed.MOST_MEMORY, share = 1e-9, packed.MOST_MEMORY
        with packed.packed(model, 1000):
            tight = len(packed._PACKED)
        packed.MOST_MEMORY = share
    found[str(dtype)] = {
        "matrices": matrices, "same": same, "times": times, "fewer": fewer,
        "as changed": as_changed, "left": left, "few": few, "tight": tight,
    }
print(json.dumps(found))
"""


def found(choice: str) -> Any:
    names = (portable.MARK, *portable.PINS, products.CHOICE)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PACKED],
        env=environment | {"PYTHONPATH": path, products.CHOICE: choice},
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("choice", ["onednn", "torch"])
def test_products_with_packed_weights_are_the_same_to_the_bit(choice: str) -> None:
    seen = found(choice)
    for dtype, facts in seen.items():
        assert facts["same"], dtype
        assert facts["as changed"], dtype
        assert (facts["left"], facts["few"], facts["tight"]) == (0, 0, 0)
    # Seven matrices a block and the head, of which small ones are left to torch.
    assert seen["torch.float16"]["matrices"] == 0
    packed = seen["torch.float32"]
    assert packed["matrices"] == (15 if choice == "onednn" else 0)
    if choice == "onednn":
        assert packed["times"] == 15
        assert packed["fewer"] == 1
