"""What an audit is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resect.data.load import name_of
from resect.records import Format


@dataclass(frozen=True)
class Names:
    """What the two sets of an audit are called in everything that it says."""

    target: str = "the target"
    preserve: str = "the preserve set"


@dataclass(frozen=True)
class AuditRequest:
    """The options of `resect audit`; see its help.

    Attributes:
        base: The model before, a folder or Hub id.
        tuned: The model after, or a folder with a LoRA adapter for `base`.
        mask: The weights behind the behaviour on `base`; without it, they are located with `target`
            and `preserve`.
        target: SPEC of the behaviour's prompts and answers; calibration rows locate and predict,
            evaluation rows measure.
        preserve: SPEC of other text: protected when locating, and the measure of utility.
        q: Fraction of the target's ranking where the weights are located.
        p: Fraction of the preserve set's ranking that is protected.
        skip: Tokens of an answer that are not scored, as many as a prefill opens with.
        format: `raw` or `chat`.
        judge: Who decides whether a reply shows the behaviour.
        limit: Most examples a set.
        controls: Number of magnitude-matched sets.
        max_new_tokens: Longest reply.
        batch_size: Prompts a batch.
        behaviour: What the behaviour is called; "" for the name of the target's file or preset.
    """

    base: str
    tuned: str
    mask: Path | None = None
    target: str | None = None
    preserve: str | None = None
    q: float = 2e-3
    p: float = 2e-3
    skip: int = 3
    format: Format = "chat"
    judge: str = "exact"
    limit: int | None = 128
    controls: int = 19
    max_new_tokens: int = 128
    batch_size: int = 16
    behaviour: str = ""

    @property
    def names(self) -> Names:
        """What the sets are called: as the user did, or as their files are."""
        target = self.behaviour or _named(self.target) or Names().target
        preserve = _named(self.preserve)
        return Names(target, preserve if preserve and preserve != target else Names().preserve)


def _named(spec: str | None) -> str:
    return name_of(spec) if spec else ""
