"""Audit a fine-tune: did it touch the weights behind a harmful behaviour, and is the harm back?"""

from resect.audit.measured import Effects, Measured
from resect.audit.request import AuditRequest
from resect.audit.rule import WORDS, AuditVerdict, Thresholds
from resect.audit.run import Audit, audit_models, compare, load_tuned

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
