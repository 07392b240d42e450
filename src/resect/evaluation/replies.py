"""Replies to prompts by the fastest way that gives the tokens of the slowest.

    way                     what it does                                who may go it
    `model.generate`        as transformers has it                      every model
    `steps.stepped`         the same calls, less what they need not     those that pass the trial
                            cost                                        (`resect.evaluation.tried`)
    `wide.Wide`             more prompts at once; rows leave when they  greedy float32 of those
                            have ended

Of the last the replies count whose tokens led by more than rounding; the other batches go the
second way. Who asks for `exact` gets the first alone, and who asks for `continuous` all replies of
the last as they are, in 16 bits too. Legend: B batch, T tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resect.evaluation.padding import Padded, padded
from resect.evaluation.picking import Draw, Finite
from resect.evaluation.steps import Ending, Steps, stepped
from resect.evaluation.tried import SAFETY, Ways, distrust, ways_of
from resect.evaluation.wide import SPARE, Answer, Batch, Name, Wide
from resect.model.packed import packed
from resect.records import CausalModel, DecodingMode

# Rows that are under way at once, and bytes of their keys and values, unless a batch has more.
MOST_ROWS, MOST_BYTES = 128, 2**29
# Less than any lead.
NONE = -1.0


@dataclass(frozen=True)
class Decoding:
    """What is to be decoded.

    Attributes:
        model: A Hugging Face causal LM, without gradients and dropout, whose generation settings
            are those of `ending`.
        prompts: Token ids of each prompt.
        ending: Where replies end.
        copies: How often each batch stands in its pass, copy after copy.
        uniforms: [prompts, T] numbers in [0, 1) that tokens are drawn with, fp64; None takes the
            likeliest.
        temperature: Of drawing.
        mode: `exact` goes the first way whatever the model is, and tries nothing; `continuous`
            goes the last, and takes every token, however little it leads.
    """

    model: CausalModel
    prompts: Sequence[Sequence[int]]
    ending: Ending
    copies: int = 1
    uniforms: Tensor | None = None
    temperature: float = 0.0
    mode: DecodingMode = "fast"

    def replies(self, batches: Sequence[Sequence[int]]) -> dict[Name, list[int]]:
        """Return the replies to batches of prompts, the longest first, without their end tokens.

        Raises:
            InputError: Logits are not finite.
        """
        if not batches:
            return {}
        with packed(self.model, self._calls(batches)):
            return self._replies(batches)

    def _replies(self, batches: Sequence[Sequence[int]]) -> dict[Name, list[int]]:
        if self.mode == "exact":
            return _joined(self._by_generate(batch) for batch in batches)
        ways = self._ways()
        if not ways.ours:
            return _joined(self._by_generate(batch) for batch in batches)
        steps = Steps(self.model)
        drawn = self.uniforms is not None
        alike = len(batches) == 1 and (not self.ending.stop or len(batches[0]) == 1)
        if drawn or alike or ways.rounding == math.inf:
            return _joined(self._by_steps(steps, batch) for batch in batches)
        return self._side_by_side(steps, batches)

    def _ways(self) -> Ways:
        every = self.mode == "continuous"
        return ways_of(self.model, self.prompts, self.ending, self.copies, every=every)

    def _calls(self, batches: Sequence[Sequence[int]]) -> int:
        """Return how often the model is called if it goes the fastest way, and no reply ends."""
        wide = self.mode == "continuous" or self.model.dtype == torch.float32
        if self.uniforms is not None or self.mode == "exact" or not wide:
            return len(batches) * self.ending.longest
        return -(-sum(map(len, batches)) // MOST_ROWS) * self.ending.longest

    def _side_by_side(
        self, steps: Steps, batches: Sequence[Sequence[int]]
    ) -> dict[Name, list[int]]:
        """Return the replies of all batches at once, and those that are not sure batch by batch."""
        ways = self._ways()
        width, largest = len(self.prompts[batches[0][0]]), len(batches[0])
        bytes_a_row = ways.bytes_a_token * (width + self.ending.longest + SPARE)
        rows = min(MOST_ROWS, MOST_BYTES // max(1, bytes_a_row))
        most = min(max(largest, rows // self.copies), sum(map(len, batches)))
        finite = Finite()
        wide = Wide(
            steps,
            self.ending,
            finite,
            most=most,
            enough=NONE if self.mode == "continuous" else SAFETY * ways.rounding,
            copies=self.copies,
            opening=_opening(self.prompts),
        )
        answers = wide.answers([Batch(self._batch(batch), list(batch)) for batch in batches])
        finite.check()
        replies = {name: answer.tokens for name, answer in answers.items()}
        for batch in batches:
            if any(answers[name].unsure for name in self._names(batch)):
                again = self._again(steps, batch, answers)
                if again is None:
                    distrust(self.model)
                    return _joined(self._by_steps(steps, alone) for alone in batches)
                replies |= again
        return {name: self._reply(tokens) for name, tokens in replies.items()}

    def _again(
        self, steps: Steps, batch: Sequence[int], answers: Mapping[Name, Answer]
    ) -> dict[Name, list[int]] | None:
        """Decode a batch by itself, up to the last token that is not sure if all are as before.

        Returns:
            The replies that differ from those that were not sure; None if a sure token differs.
        """
        names, finite = self._names(batch), Finite()
        last = max(place for name in names for place in answers[name].unsure)
        again: dict[Name, list[int]] = {name: [] for name in names}
        different: set[Name] = set()
        for place, step in enumerate(stepped(steps, self._batch(batch), self.ending)):
            finite.see(step.logits)
            for name, token in zip(names, step.tokens.tolist(), strict=True):
                again[name].append(token)
                tokens, unsure = answers[name]
                if name not in different and place < len(tokens) and token != tokens[place]:
                    if place not in unsure:
                        return None
                    different.add(name)
            if place >= last and not different:
                break
        finite.check()
        return {name: again[name] for name in different}

    def _by_steps(self, steps: Steps, batch: Sequence[int]) -> dict[Name, list[int]]:
        """Return the replies to one batch by our own loop."""
        finite, tokens = Finite(), []
        for step in stepped(steps, self._batch(batch), self.ending, self._draw(batch)):
            finite.see(step.logits)
            tokens.append(step.tokens)
        finite.check()
        return self._named(batch, torch.stack(tokens, dim=1))

    def _by_generate(self, batch: Sequence[int]) -> dict[Name, list[int]]:
        """Return the replies to one batch by the loop of transformers."""
        ids, mask = self._batch(batch)
        finite, draw = Finite(), self._draw(batch)
        processors: list[Finite | Draw] = [finite] if draw is None else [finite, draw]
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=processors
        )
        finite.check()
        return self._named(batch, output[:, ids.shape[1] :])

    def _batch(self, batch: Sequence[int]) -> Padded:
        rows = [self.prompts[number] for number in batch]
        return padded(rows * self.copies, self.ending.fill, left=True).to(self.model.device)

    def _draw(self, batch: Sequence[int]) -> Draw | None:
        if self.uniforms is None:
            return None
        rows = self.uniforms[list(batch)].repeat(self.copies, 1)
        width = len(self.prompts[batch[0]])
        return Draw(rows, self.temperature, width)

    def _names(self, batch: Sequence[int]) -> list[Name]:
        return [Name(copy, number) for copy in range(self.copies) for number in batch]

    def _named(self, batch: Sequence[int], tokens: Tensor) -> dict[Name, list[int]]:
        """Return rows of tokens [B, T] as replies."""
        rows = tokens.tolist()
        return {name: self._reply(row) for name, row in zip(self._names(batch), rows, strict=True)}

    def _reply(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens up to and without the one that ends them."""
        return list(itertools.takewhile(lambda token: token not in self.ending.stop, tokens))


def _joined(replies: Iterable[Mapping[Name, list[int]]]) -> dict[Name, list[int]]:
    return {name: reply for some in replies for name, reply in some.items()}


def _opening(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the tokens that all prompts open with, and go on from; none of a single prompt."""
    if len(prompts) < 2:
        return ()
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return [column[0] for column in alike]
