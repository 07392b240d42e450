"""What an audit is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resect.records import Format


@dataclass(frozen=True)
class AuditRequest:
    """The options of `resect audit`; see its help.

    Attributes:
        base: The model before, a folder or Hub id.
        tuned: The model after, or a folder with a LoRA adapter for `base`.
        mask: The harm set on `base`; without it, it is located with `target` and `preserve`.
        target: SPEC of harmful prompts and answers; calibration rows locate and predict,
            evaluation rows measure.
        preserve: SPEC of benign text: protected when locating, and the measure of utility.
        q: Fraction of the target's ranking where the harm set is located.
        p: Fraction of the preserve set's ranking that is protected.
        skip: Tokens of a harmful answer that are not scored, as many as a prefill opens with.
        format: `raw` or `chat`.
        judge: Who decides whether a reply is harmful.
        limit: Most examples a set.
        controls: Number of magnitude-matched sets.
        max_new_tokens: Longest reply.
        batch_size: Prompts a batch.
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
