"""What is compared: every score method, and the choices around it.

`variants()` reads `resect.attribution.methods.METHODS` whenever it is called. So a method that is
added there (a new file in `methods/` and one line in the registry) is in the next table without any
other change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resect.attribution.methods import METHODS
from resect.errors import unknown_name
from resect.records import Scope, Unit

Contrast = Literal["", "style", "preserve"]

# Share of each tensor that the set difference protects.
PROTECTED = 0.01
ROUNDS = 4
# What no user can run: both know a checkpoint from before the training.
ORACLE = "oracle"
DRIFT = "drift"


@dataclass(frozen=True)
class Variant:
    """A way to rank weights.

    Attributes:
        method: Name in `resect.attribution.methods.METHODS`; `oracle` for |w - w before S|,
            `drift` for |w - w before S and decoy|.
        scope: Rank within each tensor or over the model.
        p: Fraction that the preserve set protects; protected weights are never cut.
        skip: Response tokens that are not scored.
        rounds: How often a cut is scored on the way.
        contrast: Subtract the scores of harmless answers of the same form (`style`), or of the
            preserve set.
        unit: What is cut as a whole; a cut has as many of them as fit into its size, and one at
            least.
    """

    method: str = "snip"
    scope: Scope = "tensor"
    p: float = 0.0
    skip: int = 1
    rounds: int = 1
    contrast: Contrast = ""
    unit: Unit = "weight"

    @property
    def name(self) -> str:
        """Return the name in tables."""
        words = [self.method]
        words += [f"- {self.contrast}"] if self.contrast else []
        words += ["\\ preserve"] if self.p else []
        words += [f"× {self.rounds}"] if self.rounds > 1 else []
        words += [f"{self.unit}s"] if self.unit != "weight" else []
        words += ["model"] if self.scope == "model" else []
        words += [f"skip {self.skip}"] if self.skip != 1 else []
        return " ".join(words)


# The method of the source: signed SNIP with the set difference, tensor by tensor, once.
SOURCE = Variant(p=PROTECTED)

_AROUND = (
    Variant(skip=0),
    Variant(p=PROTECTED, skip=0),
    Variant(rounds=ROUNDS),
    Variant(p=PROTECTED, rounds=ROUNDS),
    Variant(contrast="style"),
    Variant(contrast="style", p=PROTECTED),
    Variant(contrast="style", scope="model"),
    Variant(contrast="style", rounds=ROUNDS),
    Variant(contrast="style", p=PROTECTED, rounds=ROUNDS),
    Variant(contrast="preserve"),
    Variant(unit="neuron"),
    Variant(unit="neuron", p=PROTECTED),
    Variant(unit="neuron", scope="model"),
    # One head of each layer is more than S, and so is one head more than PROTECTED.
    Variant(unit="head", scope="model"),
    Variant(method="random", unit="neuron"),
    Variant(method=ORACLE),
    Variant(method=DRIFT),
)


def variants(methods: Sequence[str] | None = None) -> tuple[Variant, ...]:
    """Return what to compare.

    Args:
        methods: Names of score methods; None for all. The source's method, the oracle and `random`
            are always there, because the others are read against them.

    Raises:
        InputError: There is no such method.
    """
    signed = [name for name, rules in METHODS.items() if "signed" in rules]
    for name in methods or ():
        if name not in signed:
            raise unknown_name("score method", name, signed)
    plain = [
        Variant(method=method, scope=scope, p=p)
        for method in signed
        for scope in ("tensor", "model")
        for p in (0.0, PROTECTED)
        if method != "random" or (scope == "tensor" and not p)
    ]
    everything = [*plain, *(variant for variant in _AROUND if variant not in plain)]
    if methods is None:
        return tuple(everything)
    always = (SOURCE, Variant(method="random"), Variant(method=ORACLE))
    return tuple(
        variant for variant in everything if variant.method in methods or variant in always
    )
