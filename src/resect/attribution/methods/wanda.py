"""Wanda (Sun et al. 2024) and plain magnitude.

    wanda_w = |w|·‖x‖₂

x is the input feature that w multiplies, over the positions that predict scored tokens, so the
score is the largest change of the layer's output when w goes. It has no sign, and neither method
looks at the loss; both are here to compare with.
"""

from __future__ import annotations

from torch import Tensor


def wanda(weight: Tensor, square: Tensor) -> Tensor:
    """Return |w|·sqrt(mean x²) [O, I], fp32.

    Args:
        weight: [O, I] or [I, O].
        square: Mean squared inputs in fp32, [1, I] or [I, 1] to match.
    """
    return weight.float().abs() * square.sqrt()


def magnitude(weight: Tensor) -> Tensor:
    """Return |w| [*], fp32."""
    return weight.float().abs()
