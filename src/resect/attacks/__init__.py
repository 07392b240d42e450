"""Ways to bypass the refusal gate, so that a harm number speaks of the capability behind it.

A prompt attack says how the assistant's turn is opened. Attacks that train or cut the model come
with a later version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resect.attacks.prompt import none, prefill
from resect.data.encode import PromptIds
from resect.errors import unknown_name
from resect.records import Example, Format


@dataclass(frozen=True)
class AttackSettings:
    """How a model is attacked.

    Attributes:
        name: `none` or `prefill`.
        tokens: For `prefill`: tokens of the target answer that open the reply.
        phrase: For `prefill`: a fixed opening instead of the target answer's.
    """

    name: str = "prefill"
    tokens: int = 10
    phrase: str | None = None


PromptAttack = Callable[[Example, object, Format, int, str | None], PromptIds]

ATTACKS: dict[str, PromptAttack] = {"none": none, "prefill": prefill}


def attack_prompt(
    settings: AttackSettings, example: Example, tokenizer: object, format: Format
) -> PromptIds:
    """Encode one prompt under an attack.

    Raises:
        InputError: The attack is unknown.
    """
    if settings.name not in ATTACKS:
        raise unknown_name("attack", settings.name, list(ATTACKS))
    attack = ATTACKS[settings.name]
    return attack(example, tokenizer, format, settings.tokens, settings.phrase)
