"""SNIP (Lee et al. 2019) with its sign kept, as in arXiv 2604.09544.

    s_w = w · (1/|D|) Σ_e ∂L_e/∂w

To first order, removing w changes the mean loss by -s_w. The facilitation a_w = -s_w is therefore
the rise of the loss when w goes: higher means that the behaviour depends on w more.

All functions take `weight` [*] in the model's dtype and a mean over examples [*] in fp32, and
return scores [*] in fp32.
"""

from __future__ import annotations

from torch import Tensor


def facilitation(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return a_w = -w·mean gradient: the first-order rise of the loss when w is removed."""
    return -(weight.float() * gradient)


def hindrance(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return -a_w: high where removing w helps the behaviour (the opposite-sign control)."""
    return weight.float() * gradient


def abs_of_mean(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return |w·mean gradient|: the importance in the text of the source."""
    return (weight.float() * gradient).abs()


def mean_of_abs(weight: Tensor, absolute: Tensor) -> Tensor:
    """Return |w|·mean |gradient of one example|: the importance in the released code."""
    return weight.float().abs() * absolute


def gradient_size(_weight: Tensor, gradient: Tensor) -> Tensor:
    """Return |mean gradient|, which leaves the size of the weight out; to compare with."""
    return gradient.abs()
