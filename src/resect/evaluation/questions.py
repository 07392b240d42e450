"""Questions: an example of a set, as it is put to a model under the prompt part of an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resect.data.encode import PromptIds, Written, prompt_text
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.attacks import AttackSettings, attack_prompt, shots_for
from resect.evaluation.attacks.prompt import framed
from resect.evaluation.spoken import Spoken
from resect.records import Example, Format, Reply, Tokenizer


class Question(NamedTuple):
    """One reply that is wanted: to which example, which of its samples, under which prompt."""

    example: Example
    sample: int
    prompt: PromptIds

    def answered(
        self,
        probe: str,
        attack: str,
        reply: Spoken,
        *,
        nll: float | None = None,
        repetition: float | None = None,
    ) -> Reply:
        """Return the reply, which names its probe and the attack under which it was asked."""
        return Reply(
            example_id=self.example.id,
            probe=probe,
            attack=attack,
            category=self.example.category,
            prompt=prompt_text(self.example),
            prefix=self.prompt.prefix,
            text=reply.text,
            key=self.example.key,
            reference=self.example.completion,
            nll=nll,
            repetition=repetition,
            sample=self.sample,
            thought=reply.thought,
            finish=reply.finish,
        )


class Around(NamedTuple):
    """What stands around each question.

    Attributes:
        frame: A text in which it stands (`framed`).
        suffix: Words right behind it, from `seek_suffix`.
    """

    frame: str = ""
    suffix: str = ""


PLAIN = Around()


def questions_for(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    attack: AttackSettings,
    *,
    format: Format,
    samples: int,
    attack_data: Mapping[str, BehaviourSet] | None = None,
    around: Around = PLAIN,
    written: Written | None = None,
) -> list[Question]:
    """Return the questions of a set: `samples` for each example, side by side.

    Args:
        examples: The set.
        tokenizer: A Hugging Face tokenizer.
        attack: The attack, of which the prompt part is used.
        format: `raw` or `chat`.
        samples: Replies to each.
        attack_data: What the attack needs, by role.
        around: What stands around each question.
        written: Prompts that this tokenizer has encoded, as for `attack_prompt`.

    Raises:
        InputError: A prompt cannot be written under the attack, or it lacks data.
    """
    questions: list[Question] = []
    shots = shots_for(attack, attack_data, examples)
    for example, before in zip(examples, shots, strict=True):
        within = framed(example, around.frame)
        prompt = attack_prompt(
            attack, within, tokenizer, format, before, suffix=around.suffix, written=written
        )
        questions += [Question(example, sample, prompt) for sample in range(samples)]
    return questions


def refuse_long(questions: Sequence[Question], context: int | None, fix: str = "") -> None:
    """Refuse prompts that fill the model's context.

    Args:
        questions: The questions.
        context: Tokens that the model can read; None for no limit.
        fix: The next step that is offered.

    Raises:
        InputError: A prompt leaves no room for a reply.
    """
    for example, _, prompt in questions:
        if context is not None and len(prompt.ids) >= context:
            raise InputError(
                f"example {example.id!r} leaves no room for a reply",
                got=f"{len(prompt.ids)} prompt tokens",
                allowed=f"fewer than the context of {context} tokens",
                fix=fix,
            )
