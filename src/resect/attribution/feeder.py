"""What the engine is fed with: weight by weight the values and the means over examples.

Two feeders exist: `resect.attribution.passes.Passes` runs a model that is in memory, and
`resect.attribution.offloaded.Blocks` reads one block at a time from disk.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from resect.attribution.sums import Statistic
from resect.model.prunable import Coverage, PrunableWeight
from resect.records import Encoded


class Scored(NamedTuple):
    """One weight with all that its scores are made of, on one device.

    Attributes:
        weight: Which weight it is.
        values: Its values [*] in the model's dtype.
        means: Means over examples [*] in fp32 by kind of sum; those of `inputs` as [1, I] or
            [I, 1].
    """

    weight: PrunableWeight
    values: Tensor
    means: dict[Statistic, Tensor]


class Identity(NamedTuple):
    """Which model is scored.

    Attributes:
        model_id: Folder or id as given.
        model_fingerprint: 32 hex digits.
        tokenizer_fingerprint: 16 hex digits.
        streamed: The model is read block by block from disk.
    """

    model_id: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    streamed: bool = False


class Feeder(Protocol):
    """Yields every prunable weight of a model once, with its means over the examples.

    Attributes:
        encoded: The examples.
        coverage: The prunable weights of the model.
    """

    encoded: Sequence[Encoded]
    coverage: Coverage

    def identity(self) -> Identity:
        """Return which model it is; reads every weight."""

    def means(self, needs: Collection[Statistic]) -> Generator[Scored]:
        """Yield each weight with its means over the examples, in any order.

        Args:
            needs: Kinds of sums over the examples.

        Raises:
            InputError: An example does not fit into memory, its loss or gradient is not finite, the
                inputs of a weight cannot be told apart by example, or another process has ended.
            CoverageError: The model cannot be read in the way of this feeder.
        """
