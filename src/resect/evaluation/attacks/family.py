"""What every model attack says of itself, so that nothing else need know it by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from resect.data.load import BehaviourSet
from resect.evaluation.attacks.patch import Patch
from resect.model import LoadedModel
from resect.records import Format


class Work(NamedTuple):
    """What an attack costs: examples scored, and examples trained on, counted anew each epoch."""

    scored: int = 0
    trained: float = 0


class ModelAttack(Protocol):
    """An attack that trains or cuts a model, with its settings.

    A frozen dataclass is one: its fields are the settings, which the command line writes as
    `NAME:FIELD=VALUE,...`. A field `preset` may be written as its bare value.

    Attributes:
        usage: What may stand behind the name on the command line, "" for nothing.
        words: What the attack is called in reports.
    """

    usage: ClassVar[str]
    words: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **settings: object) -> None:
        """Take the settings.

        Raises:
            InputError: One is out of range.
        """

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the behaviour sets that it needs: `target`, `refusal`, `preserve`."""

    def work(self, examples: int) -> Work:
        """Return what it costs where a set has this many examples."""

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        """Make the attack; the model is as before when this returns.

        Args:
            loaded: A Hugging Face causal LM on one device, and its tokenizer.
            data: A set for each role; of a set with splits the calibration split is used.
            format: `raw` or `chat`, as the evaluation asks.

        Raises:
            InputError: The data cannot be used.
        """


@runtime_checkable
class Framing(Protocol):
    """A model attack that puts questions in a frame, while it trains and when they are asked."""

    @property
    def frame(self) -> str:
        """A text with `{prompt}` in the place of the question."""
