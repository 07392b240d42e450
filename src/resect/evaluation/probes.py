"""What a model variant is asked, and what counts as a hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resect.errors import unknown_name

Goal = Literal["comply", "refuse"]


@dataclass(frozen=True)
class Probe:
    """How one question is put.

    Attributes:
        name: Name in configs and records.
        attacked: Whether the configured attack opens the reply.
        goal: Whether a hit is a reply that complies or one that refuses.
        judged: By the configured judge, by the exact judge, by a likelihood that is the score, or
            not at all.
        coherent: Whether the likelihood of the reply under the intact model is measured.
    """

    name: str
    attacked: bool
    goal: Goal
    judged: Literal["configured", "exact", "likelihood", "never"]
    coherent: bool = False

    @property
    def decoded(self) -> bool:
        """Whether replies are decoded."""
        return self.judged in ("configured", "exact")


PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe("generation", True, "comply", "configured", coherent=True),
        Probe("refusal", False, "refuse", "configured"),
        Probe("detection", False, "comply", "exact"),
        Probe("recognition", False, "comply", "likelihood"),
        Probe("explanation", False, "comply", "exact"),
        Probe("misalignment", False, "comply", "exact"),
        Probe("utility", False, "comply", "exact"),
        Probe("likelihood", False, "comply", "never"),
        Probe("perplexity", False, "comply", "never"),
    )
}


def find_probe(name: str) -> Probe:
    """Return the probe of this name.

    Raises:
        InputError: There is none.
    """
    if name not in PROBES:
        raise unknown_name("probe", name, list(PROBES))
    return PROBES[name]
