"""Score methods: from weights and sums over examples to one number a weight.

A rule names the sums that it needs and turns a weight and the means over examples into a score.
Rules take plain tensors. Higher means that the behaviour depends on the weight more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from resect.attribution.methods.fisher import second_order
from resect.attribution.methods.snip import (
    abs_of_mean,
    facilitation,
    gradient_size,
    hindrance,
    mean_of_abs,
)
from resect.attribution.methods.wanda import magnitude, wanda
from resect.attribution.sums import Statistic
from resect.errors import unknown_name


class Rule(NamedTuple):
    """How a score is made.

    Attributes:
        needs: Sums over examples.
        formula: Takes the weight [*] in the model's dtype and the means [*] in fp32 by the names
            in `needs`; returns scores [*] in fp32.
        contrasts: The score is linear in the weights of the examples, so that one pass over two
            sets makes the difference of their scores.
    """

    needs: tuple[Statistic, ...]
    formula: Callable[[Tensor, Mapping[Statistic, Tensor]], Tensor]
    contrasts: bool = False


_SIGNED = Rule(("gradient",), lambda w, mean: facilitation(w, mean["gradient"]), contrasts=True)
_OPPOSITE = Rule(("gradient",), lambda w, mean: hindrance(w, mean["gradient"]))
_ABS_OF_MEAN = Rule(("gradient",), lambda w, mean: abs_of_mean(w, mean["gradient"]))
_MEAN_OF_ABS = Rule(("absolute",), lambda w, mean: mean_of_abs(w, mean["absolute"]))

# method -> reduction -> rule. A method with a single reduction calls it `signed`: it ranks targets.
METHODS: dict[str, dict[str, Rule]] = {
    "snip": {
        "signed": _SIGNED,
        "opposite": _OPPOSITE,
        "abs_of_mean": _ABS_OF_MEAN,
        "mean_of_abs": _MEAN_OF_ABS,
    },
    "snip_abs": {"signed": _MEAN_OF_ABS},
    "integrated": {"signed": _SIGNED, "opposite": _OPPOSITE, "abs_of_mean": _ABS_OF_MEAN},
    "gradient": {
        "signed": Rule(("gradient",), lambda w, mean: gradient_size(w, mean["gradient"])),
    },
    "fisher": {
        "signed": Rule(
            ("gradient", "square"),
            lambda w, mean: second_order(w, mean["gradient"], mean["square"]),
        ),
    },
    "wanda": {"signed": Rule(("inputs",), lambda w, mean: wanda(w, mean["inputs"]))},
    "magnitude": {"signed": Rule((), lambda w, _mean: magnitude(w))},
    "random": {"signed": Rule(("noise",), lambda _w, mean: mean["noise"])},
}


def rule_of(method: str, reduction: str) -> Rule:
    """Return a rule by name.

    Raises:
        InputError: There is no such method, or it has no such reduction.
    """
    if method not in METHODS:
        raise unknown_name("score method", method, list(METHODS))
    if reduction not in METHODS[method]:
        raise unknown_name(f"reduction of {method}", reduction, list(METHODS[method]))
    return METHODS[method][reduction]


def contrasting() -> list[str]:
    """Return the methods whose score can be contrasted in one pass."""
    return [
        name for name, rules in METHODS.items() if any(rule.contrasts for rule in rules.values())
    ]
