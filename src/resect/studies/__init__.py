"""Studies: one question a file, one dictionary of them all."""

from __future__ import annotations

from resect.studies import (
    compactness,
    compression,
    dissociation,
    emergent,
    frontier,
    jailbreak,
    relearning,
    specificity,
    stability,
    transfer,
)
from resect.studies.measurements import Measurements
from resect.studies.study import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        compactness,
        transfer,
        specificity,
        compression,
        dissociation,
        emergent,
        jailbreak,
        relearning,
        stability,
        frontier,
    )
}

__all__ = ["STUDIES", "Measurements", "Study"]
