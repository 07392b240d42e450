"""Studies: one question a file, one dictionary of them all."""

from __future__ import annotations

from typing import Any

from resect.studies import (
    compactness,
    compression,
    dissociation,
    emergent,
    frontier,
    jailbreak,
    relearning,
    selectivity,
    specificity,
    stability,
    transfer,
)
from resect.studies.measurements import Measurements
from resect.studies.study import Study

# In the order of a report.
STUDIES: dict[str, Study[Any]] = {
    "compactness": compactness.STUDY,
    "transfer": transfer.STUDY,
    "specificity": specificity.STUDY,
    "compression": compression.STUDY,
    "dissociation": dissociation.STUDY,
    "emergent": emergent.STUDY,
    "jailbreak": jailbreak.STUDY,
    "relearning": relearning.STUDY,
    "stability": stability.STUDY,
    "frontier": frontier.STUDY,
    "selectivity": selectivity.STUDY,
}

__all__ = ["STUDIES", "Measurements", "Study"]
