"""How far the replies of variants that shared a pass are from those of the variants one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from resect.data.chat import text_ids
from resect.records import Reply, Tokenizer


@dataclass(frozen=True)
class Drift:
    """What of a variant's replies depends on whether it shared its passes.

    Attributes:
        replies: Replies that were compared.
        tokens: Their tokens, of the variant asked alone; of likelihoods none is decoded.
        different: Places at which the two have other tokens, or one of them ends.
        nll: Largest difference of a mean NLL, nats per token; None where none was measured.
    """

    replies: int
    tokens: int
    different: int
    nll: float | None


def drift(tokenizer: Tokenizer, alone: Sequence[Reply], joint: Sequence[Reply]) -> Drift:
    """Compare the replies of a variant, in the same order, asked alone and together with others.

    Their words are compared as tokens. The NLL of a reply that differs is of other words, and is
    left out.
    """
    tokens = different = 0
    nlls = []
    for usual, shared in zip(alone, joint, strict=True):
        before, after = text_ids(tokenizer, usual.text), text_ids(tokenizer, shared.text)
        tokens += len(before)
        different += sum(left != right for left, right in zip_longest(before, after))
        if before == after and usual.nll is not None and shared.nll is not None:
            nlls.append(abs(usual.nll - shared.nll))
    return Drift(len(alone), tokens, different, max(nlls, default=None))
