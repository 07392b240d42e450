"""How likely a variant finds what stands in a set: answers, whole texts, the words of prompts.

Nothing is decoded and nobody judges. An answer is *teacher-forced*: it stands behind its prompt,
and one forward pass says how likely each of its tokens is. The score of a row is

    exp(-mean NLL per scored token)   in [0, 1], the geometric mean of the tokens' probabilities

so that a rise of the mean NLL by ln 2 = 0.69 nats halves it, and a drop of a score is read like any
other. An attack that opens the reply says nothing here: the answer is given as a whole. One that
changes the model counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import NamedTuple

from resect.data.encode import encode, encode_prompt, prompt_text, text_ids
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.openings import nlls_behind
from resect.evaluation.sharing import rows_each
from resect.evaluation.windows import LONGEST_WINDOW, document_nlls
from resect.model import LoadedModel, context_of
from resect.records import CausalModel, Encoded, Example, Format, Judgement, Reply

# The probe that reads the words of its prompts, whose answers do not matter.
PROMPTS = "prompts"
# Stands in a conversation where the words of a prompt would; two, so that no prompt begins and ends
# like both of them.
BLANKS = ("0", "?")


class Span(NamedTuple):
    """Which tokens of an answer are scored: all after the first `skip`, at most `tokens`."""

    skip: int = 0
    tokens: int | None = None


@dataclass(frozen=True)
class Reading:
    """How sets are read.

    Attributes:
        format: `raw` or `chat`.
        batch_size: Rows of a pass, of each copy; changes speed, not scores.
        spans: Probe to the tokens of its answers that are scored; all of them where it is missing.
        copies: How often each batch stands in its pass, a copy for each variant that shares it.
    """

    format: Format = "chat"
    batch_size: int = 16
    spans: Mapping[str, Span] = field(default_factory=dict)
    copies: int = 1

    def rows(self, model: CausalModel, longest: int) -> int:
        """Return the rows of each copy in a pass, of which the longest has so many tokens."""
        return rows_each(model, self.batch_size, longest, self.copies)


class _Read(NamedTuple):
    """What a model found: mean NLL in nats per token, and the number of scored tokens."""

    nll: float
    tokens: int


class _Name(NamedTuple):
    """Which row of which copy."""

    copy: int
    example_id: str


def read(
    loaded: LoadedModel, probe: str, examples: BehaviourSet, reading: Reading, attack: str = "none"
) -> list[Reply]:
    """Return a reply without words for each example, with its NLL and the tokens behind it.

    Rows with a prompt have their answers scored, texts without one all their tokens but the first.
    The probe `prompts` scores the words of the prompts: all between what the template writes before
    and behind them.

    Args:
        loaded: The model as it is now, and its tokenizer.
        probe: Name of the probe, any.
        examples: The rows.
        reading: How to read them.
        attack: Name of the attack for the records.

    Returns:
        The replies in the order of the examples; of several copies, all of the first come first.

    Raises:
        InputError: A row has nothing to score or does not fit the model's context, or logits are
            not finite.
    """
    measured: dict[_Name, _Read] = {}
    with_prompt = [example for example in examples.examples if example.prompt]
    texts = [example for example in examples.examples if not example.prompt]
    if with_prompt:
        measured |= _answers(loaded, probe, with_prompt, reading)
    if texts:
        measured |= _texts(loaded, probe, texts, reading)
    return [
        Reply(
            example_id=example.id,
            probe=probe,
            attack=attack,
            category=example.category,
            prompt=prompt_text(example),
            prefix="",
            text="",
            reference="" if probe == PROMPTS else example.completion,
            nll=measured[_Name(copy, example.id)].nll,
            tokens=measured[_Name(copy, example.id)].tokens,
        )
        for copy in range(reading.copies)
        for example in examples.examples
    ]


def score(reply: Reply) -> Judgement:
    """Return the geometric mean of the probabilities of a row's tokens as its score."""
    if reply.nll is None:
        return Judgement("likelihood", "likelihood/none", None, reason="nothing was measured")
    return Judgement("likelihood", "likelihood/geometric-mean", math.exp(-reply.nll))


def refuse_without_answers(probe: str, examples: BehaviourSet) -> None:
    """Refuse rows whose likelihood cannot be measured, before anything is.

    Raises:
        InputError: A row has no answer, or the probe `prompts` has a row without a prompt.
    """
    for example in examples.examples:
        if probe == PROMPTS and not example.prompt:
            raise InputError(
                f"example {example.id!r} has no prompt whose words could be scored",
                got=f"a text in {examples.source}, under the probe {PROMPTS}",
                allowed=f"rows with a prompt for {PROMPTS}; texts for a probe of any other name",
                fix="rename the probe",
            )
        if probe != PROMPTS and not example.completion:
            raise InputError(
                f"example {example.id!r} has no answer whose likelihood could be measured",
                got=f"a prompt alone in {examples.source}, under the probe {probe}",
                allowed="prompts with answers, or texts, where evaluation.measure is likelihood",
                fix="elicit answers with `resect data collect`, or ask for replies",
            )


def _answers(
    loaded: LoadedModel, probe: str, examples: Sequence[Example], reading: Reading
) -> dict[_Name, _Read]:
    """Return what is found of answers or, for the probe `prompts`, of prompts."""
    model, tokenizer = loaded
    if probe == PROMPTS:
        encoded = [_words(loaded, example, reading.format) for example in examples]
    else:
        span = reading.spans.get(probe, Span())
        encoded = encode(
            examples,
            tokenizer,
            format=reading.format,
            skip=span.skip,
            tokens=span.tokens,
            max_length=context_of(model),
        )
    nlls = nlls_behind(
        model,
        [row.input_ids for row in encoded],
        [row.first_scored for row in encoded],
        reading.rows(model, max(len(row.input_ids) for row in encoded)),
        reading.copies,
    )
    names = [_Name(copy, row.id) for copy in range(reading.copies) for row in encoded]
    return {
        name: _Read(nll, row.scored_tokens)
        for name, row, nll in zip(names, encoded * reading.copies, nlls, strict=True)
        if nll is not None
    }


def _words(loaded: LoadedModel, example: Example, format: Format) -> Encoded:
    """Return a prompt with the part scored in which its words stand.

    That is all but what the same conversation has in common with ones of other words, before and
    behind; the last user turn is the one that counts.

    Raises:
        InputError: The prompt has no words, or is longer than the model's context.
    """
    ids = encode_prompt(example, loaded.tokenizer, format=format).ids
    before, behind = len(ids), len(ids)
    for blank in BLANKS:
        blanked = encode_prompt(_blanked(example, blank), loaded.tokenizer, format=format).ids
        before = min(before, _shared(ids, blanked))
        behind = min(behind, _shared(ids[::-1], blanked[::-1]))
    end = max(before, len(ids) - behind)
    context = context_of(loaded.model)
    # Nothing predicts the first token of all.
    start = max(1, before)
    if end <= start or (context is not None and end > context):
        raise InputError(
            f"the words of the prompt of example {example.id!r} cannot be scored",
            got=f"{max(0, end - start)} tokens of {end}",
            allowed="one token or more, in the model's context"
            + ("" if context is None else f" of {context} tokens"),
            fix="remove it",
        )
    return Encoded(example.id, ids[:end], start)


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two rows have in common from the first on."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )


def _blanked(example: Example, blank: str) -> Example:
    """Return the conversation with other words in its last turn."""
    if isinstance(example.prompt, str):
        return replace(example, prompt=blank)
    *turns, (role, _) = example.prompt
    return replace(example, prompt=(*turns, (role, blank)))


def _texts(
    loaded: LoadedModel, probe: str, examples: Sequence[Example], reading: Reading
) -> dict[_Name, _Read]:
    """Return what is found of whole texts, read in windows that overlap by half."""
    documents = [text_ids(loaded.tokenizer, example) for example in examples]
    for example, document in zip(examples, documents, strict=True):
        if len(document) < 2:
            raise InputError(
                f"example {example.id!r} is too short a text",
                got=f"{len(document)} tokens under the probe {probe}",
                allowed="two tokens or more",
                fix="remove it",
            )
    length = min(context_of(loaded.model) or LONGEST_WINDOW, LONGEST_WINDOW)
    rows = reading.rows(loaded.model, min(length, max(map(len, documents))))
    nlls = document_nlls(loaded.model, documents, length, max(1, length // 2), rows, reading.copies)
    names = [_Name(copy, example.id) for copy in range(reading.copies) for example in examples]
    return {
        name: _Read(nll, len(document) - 1)
        for name, document, nll in zip(names, documents * reading.copies, nlls, strict=True)
        if nll is not None
    }
