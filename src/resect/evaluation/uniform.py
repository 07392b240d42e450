"""Whether a variant is destroyed: its texts are less likely than if every token were guessed.

Who knows nothing gives each of V tokens the same probability, which costs log V nats a token. A
mean NLL above that is a model that is worse than knowing nothing, and no rate of it says anything
about a behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from resect.records import Reply


def beyond_uniform(replies: Mapping[str, Sequence[Reply]], vocabulary: int) -> tuple[str, ...]:
    """Return a line for each variant and probe whose texts are beyond uniform.

    Args:
        replies: What was asked of each variant; those without an NLL do not count.
        vocabulary: Number of tokens of the model.
    """
    lines = []
    for variant, asked in replies.items():
        for probe in dict.fromkeys(reply.probe for reply in asked):
            nlls = [reply.nll for reply in asked if reply.probe == probe and reply.nll is not None]
            mean = sum(nlls) / len(nlls) if nlls else 0.0
            # A mean that is infinite, or not a number, is no better.
            if not mean <= math.log(vocabulary):
                lines.append(
                    f"{variant}, {probe}: the mean NLL is {mean:.3g} nats a token, beyond the "
                    f"{math.log(vocabulary):.3g} of guessing among {vocabulary:,} tokens. The "
                    "model is destroyed, and its rates say nothing about a behaviour; try a "
                    "smaller q"
                )
    return tuple(lines)
