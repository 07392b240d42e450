"""Audit a fine-tune: did it touch the weights behind a harmful behaviour, and is the harm back?"""

from resect.audit.audit import Audit, audit_models, compare, load_tuned
from resect.audit.effects import Effects, Measured
from resect.audit.request import AuditRequest
from resect.audit.rule import WORDS, AuditVerdict, Thresholds

__all__ = [
    "WORDS",
    "Audit",
    "AuditRequest",
    "AuditVerdict",
    "Effects",
    "Measured",
    "Thresholds",
    "audit_models",
    "compare",
    "load_tuned",
]
