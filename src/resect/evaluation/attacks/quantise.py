"""The quantisation attack: weights are rounded to few bits after the cut (arXiv 2410.16454).

What was unlearned by small changes of many weights comes back where rounding undoes them. Every
prunable weight is rounded (`resect.weights.rounding`); embeddings, norms and routers are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

from resect.data.load import BehaviourSet
from resect.edit.live import altered
from resect.errors import InputError
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import Patch
from resect.model import LoadedModel, prunable_tensors
from resect.records import Format
from resect.weights.rounding import rounded


@dataclass(frozen=True)
class QuantiseSettings:
    """How far weights are rounded.

    Attributes:
        bits: Bits a weight, from 2 to 8.
        group: Weights that share a scale.
    """

    usage: ClassVar[str] = "[:bits=B,group=G]"
    words: ClassVar[str] = "rounding"

    bits: int = 8
    group: int = 128

    def __post_init__(self) -> None:
        """Refuse settings out of range.

        Raises:
            InputError: One is.
        """
        if not 2 <= self.bits <= 8 or self.group < 1:
            raise InputError(
                "a setting of quantise is out of range",
                got=f"bits={self.bits}, group={self.group}",
                allowed="2 to 8 bits, groups of 1 or more",
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """No data."""
        return ()

    def work(self, examples: int) -> Work:
        """Return that nothing is scored or trained."""
        del examples
        return Work()

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        """Return a patch that rounds the weights that the model has when it is applied.

        A copy of the rounded weights' values before is held meanwhile.

        Args:
            loaded: A Hugging Face causal LM that is wholly in memory, and its tokenizer.
            data: Not used.
            format: Not used.

        Raises:
            CoverageError: The model's layout is not known.
        """
        del data, format
        weights = prunable_tensors(loaded.model)
        change = partial(rounded, bits=self.bits, group=self.group)
        record = {
            "attack": "quantise",
            "settings": asdict(self),
            "rounded_weights": sum(weight.numel() for weight in weights.values()),
        }
        return Patch(lambda: altered(weights, change), record)
