"""The direction-ablation attack (Arditi et al. 2024, arXiv 2406.11717).

The direction is the difference between the mean activations at the end of prompts that are refused
and of harmless ones, block by block; it is taken out of what the blocks write
(`resect.edit.direction`). No gradient is needed, and no answer: only prompts of either kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.direction import ablated, find_ablation
from resect.errors import InputError
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import Patch
from resect.model import LoadedModel, context_of
from resect.records import Format


@dataclass(frozen=True)
class DirectionSettings:
    """Which direction is taken out, and how far.

    Attributes:
        strength: Which share of it; 1 leaves nothing along it, 2 mirrors it.
        depth: Take the direction of the block at this depth, from 0 to 1, out of all blocks; None
            takes each block's own out of its weights.
        limit: Most examples of each set, drawn by `seed`; None for all.
        seed: Seed of the draw.
    """

    usage: ClassVar[str] = "[:strength=S,depth=D]"
    words: ClassVar[str] = "ablated direction"

    strength: float = 1.0
    depth: float | None = None
    limit: int | None = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range.

        Raises:
            InputError: One is.
        """
        in_depth = self.depth is None or 0 <= self.depth <= 1
        if not (0 < self.strength <= 2 and in_depth and (self.limit is None or self.limit > 0)):
            raise InputError(
                "a setting of ablate_direction is out of range",
                got=f"strength={self.strength:g}, depth={self.depth}, limit={self.limit}",
                allowed="a strength above 0 and at most 2, a depth from 0 to 1, a limit of 1 or "
                "more",
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """Prompts that are refused, and harmless ones."""
        return ("refusal", "preserve")

    def work(self, examples: int) -> Work:
        """Return how many examples go through the model; scoring them would cost more."""
        return Work(scored=2 * min(self.limit or examples, examples))

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        """Measure the direction; the model is as before when this returns.

        Args:
            loaded: A Hugging Face causal LM that is wholly in memory, and its tokenizer.
            data: `refusal` (prompts that are refused) and `preserve` (harmless ones).
            format: `raw` or `chat`, as the evaluation asks.

        Raises:
            InputError: The prompts of both sets are the same, or a prompt is too long.
            CoverageError: The model's blocks write by parts that are not known.
        """
        model, tokenizer = loaded
        chosen = {
            role: data[role].split("calibration").limit(self.limit, self.seed)
            for role in self.roles
        }
        # With its first token alone scored, an answer is read where the prompt ends.
        refused, harmless = (
            encode(
                chosen[role].examples,
                tokenizer,
                format=format,
                tokens=1,
                max_length=context_of(model),
            )
            for role in self.roles
        )
        ablation = find_ablation(model, refused, harmless, depth=self.depth).at(self.strength)
        record = {
            "attack": "ablate_direction",
            "settings": asdict(self),
            "data": {role: examples.hash for role, examples in chosen.items()},
            "parameters": len(ablation.lines),
        }
        return Patch(lambda: ablated(model, ablation), record)
