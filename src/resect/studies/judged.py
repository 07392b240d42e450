"""Rates of a run corrected for how its judge errs (Rogan and Gladen 1978, `resect.stats.correct`).

A judge that was fitted on labelled replies knows its sensitivity and specificity, with their own
doubt. The same draws of that doubt stand behind every rate of a run, so that what two arms share of
it cancels in their difference where it can, and no bound is narrower than the labels allow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from resect.records import OUTCOMES, Claim, StudyResult
from resect.stats import ErrorRates, Sample, rogan_gladen

# What a judge has looked at; an incoherent reply is none of the judge's calls.
CALLED = tuple(outcome for outcome in OUTCOMES if outcome != "incoherent")


@dataclass(frozen=True)
class JudgeError:
    """How the judge of a run errs.

    Attributes:
        hits: Probe to the outcome that is its hit, for the probes that the judge judges.
        rates: Probe to the outcomes that the judge tells apart there, each with how it errs in it.
        unusable: Why no rate can be corrected, "" if rates can be.
        stated: What the rules of claims say of the correction.
    """

    hits: Mapping[str, str]
    rates: Mapping[str, Mapping[str, ErrorRates]]
    unusable: str
    stated: str

    def outcome(self, probe: str, outcomes: Collection[str]) -> str:
        """Return the outcome whose share is to be corrected, "" if none is.

        Args:
            probe: Name of the probe.
            outcomes: The outcomes that are counted; none for the hits of the probe.
        """
        if probe not in self.hits:
            return ""
        if not outcomes:
            return self.hits[probe]
        (counted, *others) = outcomes
        return counted if not others and counted in self.rates.get(probe, {}) else ""

    def corrected(self, probe: str, outcome: str, called: Sample, judged: Sample) -> Sample:
        """Return the true share of an outcome; NaN where it cannot be had.

        Args:
            probe: Name of the probe.
            outcome: What `outcome` returned.
            called: Share of the replies that the judge calls so.
            judged: Share of the replies that are not incoherent, of the same resampled prompts.
        """
        import math

        import numpy as np

        if self.unusable:
            return Sample(math.nan, np.full(len(called.draws), np.nan))
        sample = rogan_gladen(called, judged, self.rates[probe][outcome])
        # A draw in which the judge knows nothing has bounds, which are the widest, and no value.
        draws = np.where(np.isnan(sample.draws), sample.value, sample.draws)
        return Sample(
            sample.value, draws, trials=called.trials, below=sample.below, above=sample.above
        )


def stated_in(result: StudyResult, error: JudgeError | None) -> StudyResult:
    """Return a result whose rules say how rates are corrected; as it is without a correction."""
    if error is None:
        return result
    claims: list[Claim] = [
        replace(claim, rule=f"{claim.rule} {error.stated}") for claim in result.claims
    ]
    return replace(result, claims=tuple(claims))
