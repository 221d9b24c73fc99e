"""The key policy of a KMS key: parsed, evaluated as KMS does, and bound to measurements."""

from necli.keypolicy.conditions import Condition
from necli.keypolicy.document import KeyPolicy, MalformedPolicy, Policy, Principal, Statement
from necli.keypolicy.evaluate import Decision, FailedCondition, RequestContext, evaluate

__all__ = [
    "Condition",
    "Decision",
    "FailedCondition",
    "KeyPolicy",
    "MalformedPolicy",
    "Policy",
    "Principal",
    "RequestContext",
    "Statement",
    "evaluate",
]
