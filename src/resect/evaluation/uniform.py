"""Whether a variant is destroyed: its texts are less likely than if every token were guessed.

Who knows nothing gives each of V tokens the same probability, which costs log V nats a token. A
mean NLL above that is a model that is worse than knowing nothing, and no rate of it says anything
about a behaviour. Where the intact model is beyond that too, the texts are to blame, not the cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from resect.records import Reply

DESTROYED = "The model is destroyed, and its rates say nothing about a behaviour; try a smaller q"
NOISE = (
    "These texts are noise to the model, so that what a cut does to them says nothing; give "
    "answers of its own, and see whether --format and the chat template are its own, too"
)


def beyond_uniform(replies: Mapping[str, Sequence[Reply]], vocabulary: int) -> tuple[str, ...]:
    """Return a line for each variant and probe whose texts are beyond uniform.

    Args:
        replies: What was asked of each variant; those without an NLL do not count.
        vocabulary: Number of tokens of the model.
    """
    uniform = math.log(vocabulary)
    means = {
        (variant, probe): mean
        for variant, asked in replies.items()
        for probe in dict.fromkeys(reply.probe for reply in asked)
        # A mean that is infinite, or not a number, is no better.
        if not (mean := _mean(asked, probe)) <= uniform
    }
    return tuple(
        f"{variant}, {probe}: the mean NLL is {mean:.3g} nats a token, beyond the {uniform:.3g} of "
        f"guessing among {vocabulary:,} tokens. {NOISE if variant == 'intact' else DESTROYED}"
        for (variant, probe), mean in means.items()
        if variant == "intact" or ("intact", probe) not in means
    )


def _mean(asked: Sequence[Reply], probe: str) -> float:
    """Return the mean NLL of a probe; 0 where none was measured."""
    nlls = [reply.nll for reply in asked if reply.probe == probe and reply.nll is not None]
    return sum(nlls) / len(nlls) if nlls else 0.0
