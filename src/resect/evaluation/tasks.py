"""Questions of lm-eval tasks, put to a variant by lm-eval and marked by it, one mark a question.

A task stands where a set of ours would: each question is an example, its task is its category, and
its prompt is the question by itself, without the solved examples in front of it, so that halves and
intervals know which questions say the same. The answer comes with its mark, which is lm-eval's
value of one metric for this question. No judge of ours sees it.

lm-eval itself is loaded by `resect.evaluation.lm_eval_tasks` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from resect.data.encode import prompt_text
from resect.data.load import BehaviourSet
from resect.model import LoadedModel
from resect.records import Example, Judgement, Reply

JUDGE = "lm-eval"
# In the answer key of a question: lm-eval's metric and filter, and the mark that guessing has.
METRIC, CHANCE = "lm-eval", "chance"


class Answered(NamedTuple):
    """What lm-eval made of one question: the answer as text, and its mark if it has one."""

    text: str
    mark: float | None


class Asker(Protocol):
    """Puts questions to a model as it is now."""

    def __call__(
        self, loaded: LoadedModel, questions: Sequence[Example], batch_size: int
    ) -> Mapping[str, Answered]:
        """Return what became of each question, by its id."""


@dataclass(frozen=True)
class TaskSet(BehaviourSet):
    """Questions of lm-eval tasks.

    Attributes:
        asker: Who puts them.
    """

    asker: Asker | None = field(default=None, compare=False, repr=False)

    def answers(self, loaded: LoadedModel, probe: str, attack: str, batch_size: int) -> list[Reply]:
        """Return a variant's answer to each question, with its mark.

        Args:
            loaded: The variant as it is now, and its tokenizer.
            probe: Name of the probe.
            attack: Name of the attack for the records.
            batch_size: Requests that go through the model together.

        Raises:
            InputError: lm-eval cannot ask this model, or its metric is no mark of one question.
        """
        answered = {} if self.asker is None else self.asker(loaded, self.examples, batch_size)
        return [
            Reply(
                example_id=example.id,
                probe=probe,
                attack=attack,
                category=example.category,
                prompt=prompt_text(example),
                prefix="",
                text=answered[example.id].text,
                key=example.key,
                reference=example.completion,
                mark=answered[example.id].mark,
            )
            for example in self.examples
        ]


def is_marked(reply: Reply) -> bool:
    """Tell whether lm-eval marks an answer, so that no judge of ours does."""
    return METRIC in reply.key


def mark_of(reply: Reply) -> Judgement:
    """Return lm-eval's mark as a judgement; an answer that it could not mark is unscored."""
    reason = "lm-eval has no value for this question" if reply.mark is None else ""
    return Judgement(JUDGE, str(reply.key[METRIC]), reply.mark, reason=reason)


def chances(examples: Sequence[Example]) -> list[float]:
    """Return the mark that guessing has in each question; 0 where nothing is chosen from."""
    return [float(example.key.get(CHANCE, 0.0)) for example in examples]
