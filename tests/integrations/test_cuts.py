"""What a log says of a cut: the hash by which resect itself names the mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from resect.edit.checkpoint import prune_checkpoint
from resect.files.reading import read_json
from resect.integrations.cuts import mask_facts
from resect.weights.mask import Mask, MaskTensor


def with_an_untouched_tensor(mask: Mask) -> Mask:
    name = next(iter(mask.tensors))
    empty = torch.zeros(0, dtype=torch.int64)
    nothing = MaskTensor(
        mask.tensors[name].shape, empty, mask.tensors[name].value[:0], empty.to(torch.uint8)
    )
    return Mask({**mask.tensors, name: nothing}, mask.meta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("untouched", [False, True])
def test_a_log_is_traced_to_the_mask_and_to_the_folder_cut_with_it(
    dtype: torch.dtype, untouched: bool, tmp_path: Path
) -> None:
    model = tiny.save("llama", tmp_path / "m", dtype=dtype)
    mask = tiny.cut(tiny.build("llama", dtype=dtype))
    if untouched:
        mask = with_an_untouched_tensor(mask)
    mask.save(tmp_path / "mask.safetensors")
    prune_checkpoint(model, mask, tmp_path / "cut")
    logged = mask_facts(mask)["mask_hash"]
    assert logged == Mask.load(tmp_path / "mask.safetensors").hash
    assert logged == read_json(tmp_path / "cut" / "resect.json")["mask"]
