"""Audit a fine-tune: did it touch the weights behind a harmful behaviour, and is the harm back?"""

from resect.audit.rule import WORDS, AuditVerdict, Thresholds
from resect.audit.run import Audit, AuditRequest, Measured, audit_models, compare, load_tuned

__all__ = [
    "WORDS",
    "Audit",
    "AuditRequest",
    "AuditVerdict",
    "Measured",
    "Thresholds",
    "audit_models",
    "compare",
    "load_tuned",
]
