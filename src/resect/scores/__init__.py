"""Score methods: from weights and summed gradients to one number a weight.

Each takes plain tensors. Higher means that the behaviour depends on the weight more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from resect.scores.snip import abs_of_mean, facilitation, hindrance, mean_of_abs

Sums = Literal["gradient", "absolute"]

# name -> (which sum over examples it needs, how it turns weight and mean into a score)
SNIP: dict[str, tuple[Sums, Callable[[Tensor, Tensor], Tensor]]] = {
    "signed": ("gradient", facilitation),
    "opposite": ("gradient", hindrance),
    "abs_of_mean": ("gradient", abs_of_mean),
    "mean_of_abs": ("absolute", mean_of_abs),
}
