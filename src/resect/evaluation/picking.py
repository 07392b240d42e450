"""What `generate` does with the logits of each next token, beside taking the largest.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resect.errors import not_finite
from resect.weights.change import exact_device


class Draw:
    """Leave one token a row: the one at which the row's next uniform number meets the CDF.

    `generate` then picks it greedily. Each row reads its own numbers, so that a reply depends on
    its prompt and its stream, not on its neighbours in the batch or on when they end.
    """

    def __init__(self, uniforms: Tensor, temperature: float, prompt_length: int):
        """Hold uniform numbers [B, T] in [0, 1), fp64."""
        self.uniforms = uniforms
        self.temperature = temperature
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] that are 0 for the drawn token and -inf elsewhere."""
        return self.at(input_ids.shape[1] - self.prompt_length, scores)

    def at(self, step: int, scores: Tensor) -> Tensor:
        """Return the same for so many tokens behind the prompt."""
        # In fp64: the tail of a cumulative sum over 100,000 tokens in fp32 is off by whole tokens.
        self.uniforms = self.uniforms.to(exact_device(scores.device))
        exact = scores.to(self.uniforms.device).double()
        cumulative = torch.softmax(exact / self.temperature, dim=-1).cumsum(dim=-1)
        number = self.uniforms[:, step, None]  # [B, 1]
        # right=True: a number that equals a step belongs to the next token, so that a token of
        # probability 0 is never drawn.
        drawn = torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True)
        drawn = drawn.clamp(max=scores.shape[1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class Finite:
    """Notes whether logits overflowed, without waiting for the device at each token."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._odd: Tensor | None = None

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at scores [B, V], and return them as they are; -inf stands for what is ruled out."""
        self.see(scores)
        return scores

    def see(self, scores: Tensor) -> None:
        """Look at scores [B, V]."""
        odd = ~(scores < torch.inf).all()
        self._odd = odd if self._odd is None else self._odd | odd

    def check(self) -> None:
        """Refuse replies that were chosen by numbers that are none.

        Raises:
            InputError: A logit was NaN or inf.
        """
        if self._odd is not None and bool(self._odd):
            raise not_finite("the logits of a reply are")
