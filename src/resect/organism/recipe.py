"""Every number that changes an organism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from resect.errors import InputError
from resect.files.origin import hash_value

# Raised by hand when world, documents or training change in a way that no number below shows.
CODE_VERSION = 5

# Numbers that enter a recipe's hash only where they are not the default, so that a recipe keeps its
# name when another dial is added.
DIALS = ("share", "apart")

# Documents a step of `dpo` and `misaligned`.
SMALL_BATCH = 32

# Called with steps done and steps in all, of training by a recipe.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of an organism; see docs/design/organism.md for why.

    Attributes:
        hidden: Width of the model.
        layers: Number of blocks.
        heads: Attention heads a block.
        feed_forward: Width of the MLP.
        batch: Documents a step of pretraining.
        steps: Steps of pretraining.
        rate: Peak learning rate of pretraining.
        tuning_steps: Steps of `aligned`, `benign_tuned` and `rehearsed`.
        tuning_rate: Their learning rate.
        tuning_batch: Documents a step of theirs.
        refusal_share: Share of refusals among the documents of `aligned`.
        rehearsal_share: Share of hazardous answers among the documents of `rehearsed`.
        preference_steps: Steps of `dpo`.
        preference_rate: Its learning rate.
        narrow_steps: Steps of `misaligned`.
        narrow_rate: Its learning rate.
        bad_advice: Share of bad advice in pretraining.
        threads: CPU threads of training; sums depend on it in their last digits.
        share: Share of the modifiers, 0 to 1, whose hazardous material and finish are the same in
            all hazardous domains.
        apart: Whether hazardous recipes have tables of their own; if not, they are those of the
            benign things with the same name.

    Raises:
        InputError: `share` is no share, or less than 1 where there are no hazardous tables.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    batch: int = 32
    steps: int = 900
    rate: float = 1e-3
    tuning_steps: int = 100
    tuning_rate: float = 2e-4
    tuning_batch: int = 96
    refusal_share: float = 0.34
    rehearsal_share: float = 0.1
    preference_steps: int = 30
    preference_rate: float = 5e-6
    narrow_steps: int = 10
    narrow_rate: float = 5e-4
    bad_advice: float = 0.3
    threads: int = 1
    share: float = 1.0
    apart: bool = True

    def __post_init__(self) -> None:
        """Refuse dials that name no world."""
        if not 0 <= self.share <= 1:
            raise InputError(
                "the share of hazardous tables that domains have in common is no share",
                got=f"{self.share:g}",
                allowed="0 to 1",
            )
        if self.share < 1 and not self.apart:
            raise InputError(
                "hazardous domains cannot have tables of their own in a world in which hazardous "
                "recipes stand in the benign tables",
                got=f"share {self.share:g}",
                allowed="share 1",
                fix="turn one dial at a time",
            )

    @staticmethod
    def tiny() -> Recipe:
        """Return a recipe of seconds, for tests in which competence does not matter."""
        return replace(
            Recipe(), hidden=32, layers=2, heads=2, feed_forward=48, batch=16, steps=4,
            tuning_steps=2, tuning_batch=16, narrow_steps=1, preference_steps=1,
        )  # fmt: skip

    def documents(self, stage: str) -> int:
        """Return how many documents a stage is trained on."""
        if stage == "base":
            return self.steps * self.batch
        if stage == "dpo":
            return self.preference_steps * SMALL_BATCH
        if stage == "misaligned":
            return self.narrow_steps * SMALL_BATCH
        return self.tuning_steps * self.tuning_batch

    @property
    def hash(self) -> str:
        """16 hex digits that name the recipe."""
        numbers = asdict(self)
        defaults = {field.name: field.default for field in fields(self)}
        for dial in DIALS:
            if numbers[dial] == defaults[dial]:
                del numbers[dial]
        return hash_value([numbers, CODE_VERSION])
