"""How probable a variant finds the right one of two answers, without decoding a reply.

The set of the probe has two different answers, "yes" and "no" for instance, each of them the right
one to some prompts. With P(answer) the probability of all of an answer's tokens after the prompt,

    score = P(right) / (P(right) + P(wrong))

It is kept as its negative logarithm (`nll`, nats), from which log P(right) - log P(wrong) comes
back without loss however sure a model is; `resect.studies.discrimination` ranks by this margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from resect.data.encode import encode, prompt_text
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.decode import mean_nlls
from resect.model import LoadedModel, context_of
from resect.records import Example, Format, Judgement, Reply

NAME = "recognition"


def recognise(
    loaded: LoadedModel, data: BehaviourSet, attack: str, *, format: Format, batch_size: int
) -> list[Reply]:
    """Return a row for each prompt, with the negative logarithm of its score.

    Args:
        loaded: The variant and its tokenizer.
        data: Prompts with one of two answers each.
        attack: Name of the attack on the model that is in force.
        format: `raw` or `chat`.
        batch_size: Answers that go through the model together.

    Raises:
        InputError: The set has not two different answers, or an example cannot be scored.
    """
    answers = _two_answers(data)
    logs = {
        answer: _log_probs(loaded, data.examples, answer, format, batch_size) for answer in answers
    }
    replies = []
    for number, example in enumerate(data.examples):
        wrong = next(answer for answer in answers if answer != example.completion)
        margin = logs[example.completion][number] - logs[wrong][number]
        replies.append(
            Reply(
                example_id=example.id,
                probe=NAME,
                attack=attack,
                category=example.category,
                prompt=prompt_text(example),
                prefix="",
                text="",
                key=example.key,
                reference=example.completion,
                nll=_softplus(-margin),
            )
        )
    return replies


def of_two(reply: Reply) -> Judgement:
    """Return the probability of the right answer, of the two, as the score of a row."""
    if reply.nll is None:
        return Judgement("likelihood", "likelihood/none", None, reason="nothing was measured")
    return Judgement("likelihood", "likelihood/of-two-answers", math.exp(-reply.nll))


def _two_answers(data: BehaviourSet) -> list[str]:
    answers = list(dict.fromkeys(example.completion for example in data.examples))
    if len(answers) != 2 or not all(answers):
        shown = ", ".join(repr(answer) for answer in answers[:4])
        raise InputError(
            f"{data.source} is no set for the probe {NAME}",
            got=f"{len(answers)} different answers in {len(data)} rows: {shown}",
            allowed="two, each the right one to some prompts, for instance yes and no",
            fix="give every row one of two answers as its completion, or use the probe detection",
        )
    return answers


def _log_probs(
    loaded: LoadedModel, examples: Sequence[Example], answer: str, format: Format, batch_size: int
) -> list[float]:
    """Return the log-probability of all tokens of an answer after each prompt, in nats."""
    model, tokenizer = loaded
    encoded = encode(
        [replace(example, completion=answer, prefix_tokens=0) for example in examples],
        tokenizer,
        format=format,
        max_length=context_of(model),
    )
    means = mean_nlls(
        model,
        [example.input_ids for example in encoded],
        [example.first_scored for example in encoded],
        batch_size,
    )
    return [
        -(mean or 0.0) * example.scored_tokens for mean, example in zip(means, encoded, strict=True)
    ]


def _softplus(value: float) -> float:
    """Return log(1 + e^value)."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
