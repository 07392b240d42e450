"""Audit a fine-tune: did it touch the weights behind a behaviour, and is the behaviour back?"""

from resect.audit.audit import Audit, audit_models, compare
from resect.audit.effects import Effects, Measured
from resect.audit.loading import load_tuned
from resect.audit.outside import OutsideChange
from resect.audit.request import AuditRequest
from resect.audit.rule import WORDS, AuditVerdict, Thresholds

__all__ = [
    "WORDS",
    "Audit",
    "AuditRequest",
    "AuditVerdict",
    "Effects",
    "Measured",
    "OutsideChange",
    "Thresholds",
    "audit_models",
    "compare",
    "load_tuned",
]
