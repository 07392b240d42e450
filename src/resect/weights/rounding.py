"""Weight-only rounding to few bits, as quantisers do it without data.

Round to nearest, symmetric, for each group g of consecutive weights along a tensor's last axis (a
linear layer's inputs):

    s_g = max |w| / (2^(bits-1) - 1)        w' = s_g · round(w / s_g), ties to even

A zero stays exactly zero, so a cut stays a cut. Quantisers that choose an offset, move weights by
calibration data or leave layers out round otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """Return weights [..., inputs] rounded to 2^bits - 1 levels a group, in their own dtype.

    Args:
        weight: Any floating dtype; computed in fp32.
        bits: From 2 on.
        group: Weights that share a scale; the last group of a row may have fewer.
    """
    wide = weight.float()
    short = -wide.shape[-1] % group
    padded = torch.nn.functional.pad(wide, (0, short))
    padded = padded.reshape(*wide.shape[:-1], -1, group)
    scale = padded.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    # A group of zeros has no scale, and stays.
    levels = torch.where(scale > 0, padded / scale.clamp(min=torch.finfo().tiny), 0.0).round()
    close: Tensor = (levels * scale).flatten(-2)[..., : wide.shape[-1]]
    return close.to(weight.dtype)
