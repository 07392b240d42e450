"""Second order by the empirical Fisher (LeCun et al. 1989; Theis et al. 2018).

    f_w = -w·g + ½·w²·E[g_e²]

The rise of the loss when w is removed, to second order, with the mean squared gradient of single
examples in the place of the diagonal of the Hessian.
"""

from __future__ import annotations

from torch import Tensor


def second_order(weight: Tensor, gradient: Tensor, square: Tensor) -> Tensor:
    """Return f_w [*], fp32, from weight [*], mean gradient [*] and mean squared gradient [*]."""
    w = weight.float()
    return -(w * gradient) + 0.5 * w.square() * square
