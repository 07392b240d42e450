"""The forward passes that asking takes, counted before a run: calls, tokens, logits and rows.

It counts what `resect.evaluation` does with rows of known lengths:

    prompts       in batches of similar length, logits of the last place; side by side, what all of
                  them open with goes through once
    new tokens    side by side (`resect.evaluation.wide`): as many calls as the longest reply has
                  tokens, or as all have together over the rows that are under way; else batch by
                  batch, each as long as its longest reply
    coherence     replies behind their prompts, under the intact model
    likelihood    references under the variant, and once for each model under the intact one; where
                  all is measured by likelihood, answers behind what their prompts open with

Batches that are decoded again, because a token led by too little, are not counted.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from resect.attribution.head import CPU_PIECE
from resect.data.encode import encode_prompt, text_ids
from resect.data.load import BehaviourSet
from resect.evaluation.attacks import AttackSettings, parse_attack
from resect.evaluation.openings import LEAST_OPENING
from resect.evaluation.probes import Probe, find_probe
from resect.evaluation.replies import MOST_BYTES, MOST_ROWS
from resect.evaluation.wide import LEAVING, SPARE
from resect.evaluation.windows import LONGEST_WINDOW
from resect.records import DecodingMode, Example, Format, Tokenizer
from resect.runs.config import RunConfig
from resect.runs.joint import MOST_CUT, why_alone
from resect.studies.cells import Cell

# Rows of a split whose lengths are measured; those of the others are taken to be the same.
MEASURED = 128
# How often a control that is matched in damage is measured, with the cut that it is matched to:
# twelve of twelve on SmolLM2 took eight.
DAMAGE_MEASURED = 8


class RowSize(NamedTuple):
    """Tokens of a row: its prompt with the template, 0 of a text, and its answer."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class SetSize:
    """How long the rows of a behaviour set are.

    Attributes:
        scored: Those of its calibration split.
        asked: Those of its evaluation split.
        opening: Tokens that all prompts of the evaluation split open with.
    """

    scored: tuple[RowSize, ...]
    asked: tuple[RowSize, ...]
    opening: int = 0


@dataclass(frozen=True)
class Passes:
    """Forward passes of one kind, or of several.

    Attributes:
        calls: Calls of the model.
        tokens: Tokens that go through its blocks, padding included.
        places: Places whose logits are made.
        rows: Replies that are encoded, judged and written.
    """

    calls: float = 0.0
    tokens: float = 0.0
    places: float = 0.0
    rows: float = 0.0

    def __add__(self, addend: Passes) -> Passes:
        """Return both."""
        return Passes(
            self.calls + addend.calls,
            self.tokens + addend.tokens,
            self.places + addend.places,
            self.rows + addend.rows,
        )


@dataclass(frozen=True)
class Asking:
    """Passes of a cell; each kind is bound by something else, so that they are kept apart.

    Attributes:
        reading: Rows that are read as a whole, prompts among them.
        writing: Calls that write a token of each row.
    """

    reading: Passes = field(default_factory=Passes)
    writing: Passes = field(default_factory=Passes)

    def __add__(self, addend: Asking) -> Asking:
        """Return both."""
        return Asking(self.reading + addend.reading, self.writing + addend.writing)


@dataclass(frozen=True)
class Decoder:
    """What of a model says how it decodes and what logits take.

    Attributes:
        vocabulary: Number of words.
        bytes_a_token: Of keys and values, in each row.
        side_by_side: Whether a trial may find that more than a batch gives its tokens: numbers of
            float32 and no choice of experts.
    """

    vocabulary: int
    bytes_a_token: float
    side_by_side: bool


def goes_side_by_side(decoder: Decoder, mode: DecodingMode) -> bool:
    """Tell whether greedy replies of more than a batch may be decoded at once."""
    return mode == "continuous" or (decoder.side_by_side and mode == "fast")


def size_of_set(tokenizer: Tokenizer, data: BehaviourSet, format: Format) -> SetSize:
    """Return how long the rows of a set are.

    Raises:
        InputError: A prompt cannot be written in this format.
    """
    calibration, evaluation = (
        # Rows of a set without splits are of both.
        [row for row in data.examples if row.split in (split, "")]
        for split in ("calibration", "evaluation")
    )
    prompts = [
        encode_prompt(example, tokenizer, format=format).ids
        for example in evaluation[:MEASURED]
        if example.prompt
    ]
    columns = zip(*prompts, strict=False) if len(prompts) > 1 else iter(())
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return SetSize(
        _sizes(tokenizer, calibration, format),
        _sizes(tokenizer, evaluation, format),
        sum(1 for _ in alike),
    )


def _sizes(
    tokenizer: Tokenizer, examples: Sequence[Example], format: Format
) -> tuple[RowSize, ...]:
    measured = [_size(tokenizer, example, format) for example in examples[:MEASURED]]
    return tuple(measured[place % len(measured)] for place in range(len(examples)))


def _size(tokenizer: Tokenizer, example: Example, format: Format) -> RowSize:
    if not example.prompt:
        return RowSize(0, len(text_ids(tokenizer, example)))
    answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    return RowSize(len(encode_prompt(example, tokenizer, format=format).ids), len(answer))


def asking(
    config: RunConfig,
    cell: Cell,
    decoder: Decoder,
    sizes: Mapping[str, SetSize],
    *,
    full: bool,
) -> Asking:
    """Return the passes of a cell, less what the intact model says once for all variants.

    Args:
        config: The run.
        cell: The cell.
        decoder: Its model.
        sizes: Set to its rows, by its name under `data`, for all probes.
        full: Whether replies are as long as they may be; else they are as long as the answers of
            their sets.
    """
    evaluation = config.evaluation
    count = Asking()
    for name in cell.probes:
        size = sizes[evaluation.probes[name]]
        if evaluation.limit is not None:
            size = replace(size, asked=size.asked[: evaluation.limit])
        if evaluation.measure == "likelihood":
            count += Asking(_read_behind(size, name, evaluation.batch_size))
        elif not find_probe(name).decoded:
            texts = tuple(prompt + answer for prompt, answer in size.asked)
            answers = sum(answer for _, answer in size.asked)
            count += Asking(_read(texts, evaluation.batch_size, answers, decoder.vocabulary))
        else:
            count += _answered(config, cell, find_probe(name), size, decoder, full=full)
    if cell.cut is not None and cell.cut.kind == "damage":
        count += Asking(_damage(config, sizes, decoder))
    return _shared(config, cell, count)


def intact_once(config: RunConfig, decoder: Decoder, sizes: Mapping[str, SetSize]) -> Passes:
    """Return what the intact model says of references, for all variants of one model."""
    evaluation = config.evaluation
    if evaluation.measure == "likelihood" or "likelihood" not in evaluation.probes:
        return Passes()
    rows = sizes[evaluation.probes["likelihood"]].asked[: evaluation.limit]
    texts = tuple(prompt + answer for prompt, answer in rows)
    answers = sum(answer for _, answer in rows)
    return replace(_read(texts, evaluation.batch_size, answers, decoder.vocabulary), rows=0)


def _shared(config: RunConfig, cell: Cell, count: Asking) -> Asking:
    """Return the passes of a cell, whose calls it may share with others."""
    together = config.evaluation.together
    attack = parse_attack(cell.attack) if cell.attack else AttackSettings()
    large = cell.cut is not None and cell.cut.q > MOST_CUT
    if together == 1 or large or why_alone(cell, attack):
        return count
    reading, writing = count.reading, count.writing
    return Asking(
        replace(reading, calls=reading.calls / together),
        replace(writing, calls=writing.calls / together),
    )


class _Manner(NamedTuple):
    """How replies to a set are decoded.

    Attributes:
        decoder: The model if they may be decoded side by side, None for batch by batch.
        batch: Prompts of a batch.
        longest: Most new tokens.
        prefix: Tokens of the answer that open replies.
        samples: Replies to each prompt.
        full: Whether replies are as long as they may be.
    """

    decoder: Decoder | None
    batch: int
    longest: int
    prefix: int
    samples: int
    full: bool


def _answered(
    config: RunConfig, cell: Cell, probe: Probe, size: SetSize, decoder: Decoder, *, full: bool
) -> Asking:
    """Return the passes of a probe whose replies are decoded."""
    evaluation = config.evaluation
    attack = parse_attack(cell.attack) if cell.attack else _usual(config)
    opens = attack.name == "prefill" and attack.opens(probe.name, default=probe.attacked)
    wide = goes_side_by_side(decoder, evaluation.decoding) and not cell.temperature
    manner = _Manner(
        decoder if wide else None,
        evaluation.batch_size,
        evaluation.max_new_tokens,
        attack.tokens if opens else 0,
        cell.samples,
        full,
    )
    return _replied(size, manner, decoder.vocabulary if probe.coherent else None)


def _usual(config: RunConfig) -> AttackSettings:
    return AttackSettings(config.attack.name, config.attack.tokens, config.attack.phrase)


@functools.lru_cache(maxsize=256)
def _replied(size: SetSize, manner: _Manner, coherent: int | None) -> Asking:
    """Return the passes of replies, and of reading them again.

    Args:
        size: The set.
        manner: How they are decoded.
        coherent: The words of the model if the replies are read again, else None.
    """
    decoder, batch, longest, prefix, samples, full = manner
    rows = [
        RowSize(
            prompt + prefix,
            longest if full or not answer else min(longest, max(1, answer - prefix + 1)),
        )
        for prompt, answer in size.asked
        for _ in range(samples)
    ]
    count = _decode(rows, batch, decoder, size.opening)
    if coherent is not None:
        texts = tuple(prompt + answer for prompt, answer in rows)
        again = _read(texts, batch, sum(answer for _, answer in rows), coherent)
        count += Asking(replace(again, rows=0))
    return count


def _decode(rows: Sequence[RowSize], batch: int, decoder: Decoder | None, opening: int) -> Asking:
    """Return the passes of replies; without a decoder they are decoded batch by batch."""
    if not rows:
        return Asking()
    order = sorted(rows, key=lambda row: -row.prompt)
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    prompts = sum(len(chosen) * chosen[0].prompt for chosen in batches)
    longest = [max(row.answer for row in chosen) for chosen in batches]
    read = len(batches)
    # The first token of a reply comes with its prompt.
    if decoder is None:
        calls = sum(steps - 1 for steps in longest)
        written = sum(
            len(chosen) * (steps - 1) for chosen, steps in zip(batches, longest, strict=True)
        )
    else:
        shared = min(opening, order[-1].prompt - 1)
        if shared >= LEAST_OPENING:
            prompts -= (len(order) - 1) * shared
            read += 1
        a_row = decoder.bytes_a_token * (order[0].prompt + max(longest) + SPARE)
        room = min(MOST_ROWS, int(MOST_BYTES // max(1.0, a_row)))
        most = min(max(batch, room), len(order))
        written = sum(row.answer - 1 for row in order)
        calls = max(max(longest) - 1, -(-written // most))
        written = round(written * (1 + LEAVING / 2))
    count = float(len(rows))
    return Asking(
        Passes(float(read), float(prompts), count, count),
        Passes(float(calls), float(written), float(written)),
    )


@functools.lru_cache(maxsize=256)
def _read(texts: tuple[int, ...], batch: int, scored: int, vocabulary: int) -> Passes:
    """Return the passes over rows that are read as a whole, all their logits if those are few."""
    order = sorted(texts, reverse=True)
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    tokens = [len(chosen) * chosen[0] for chosen in batches]
    whole = all(4 * vocabulary * count <= CPU_PIECE for count in tokens)
    places = float(sum(tokens) if whole else scored)
    return Passes(float(len(batches)), float(sum(tokens)), places, float(len(texts)))


def _read_behind(size: SetSize, probe: str, batch: int) -> Passes:
    """Return the passes over answers, or prompts, behind what all rows open with."""
    by_words = probe == "prompts"
    opening = size.opening if size.opening >= LEAST_OPENING else 0
    texts = tuple(
        # Of a text longer than a window, each half but the first is read twice.
        answer * (1 if answer <= LONGEST_WINDOW else 2)
        if not prompt
        else max(1, prompt - opening + (0 if by_words else answer))
        for prompt, answer in size.asked
    )
    scored = sum(
        prompt - opening if by_words and prompt else answer for prompt, answer in size.asked
    )
    behind = replace(_read(texts, batch, scored, CPU_PIECE), places=float(scored))
    return behind + (Passes(1.0, float(opening)) if opening else Passes())


def _damage(config: RunConfig, sizes: Mapping[str, SetSize], decoder: Decoder) -> Passes:
    """Return the passes that find a control which is matched in damage."""
    from resect.runs.masks import DAMAGE_TEXTS

    evaluation = config.evaluation
    probes = [name for name in ("likelihood", "utility") if name in evaluation.probes]
    if not probes:
        return Passes()
    rows = sizes[evaluation.probes[probes[0]]].asked[:DAMAGE_TEXTS]
    texts = tuple(prompt + answer for prompt, answer in rows)
    answers = sum(answer for _, answer in rows)
    once = _read(texts, evaluation.batch_size, answers, decoder.vocabulary)
    times = DAMAGE_MEASURED
    return Passes(once.calls * times, once.tokens * times, once.places * times)


def mean_tokens(rows: Iterable[RowSize]) -> float:
    """Return the mean length of rows, 0 without any."""
    lengths = [prompt + answer for prompt, answer in rows]
    return sum(lengths) / len(lengths) if lengths else 0.0
