"""The key policy of a KMS key: parsed, evaluated as KMS does, and bound to measurements."""

from necli.keypolicy.conditions import Condition
from necli.keypolicy.document import KeyPolicy, MalformedPolicy, Policy, Principal, Statement
from necli.keypolicy.evaluate import Decision, FailedCondition, RequestContext, caller_arns, evaluate
from necli.keypolicy.plan import PolicyChange, check_lock_out, initial_policy, plan_measurements

__all__ = [
    "Condition",
    "Decision",
    "FailedCondition",
    "KeyPolicy",
    "MalformedPolicy",
    "Policy",
    "PolicyChange",
    "Principal",
    "RequestContext",
    "Statement",
    "caller_arns",
    "check_lock_out",
    "evaluate",
    "initial_policy",
    "plan_measurements",
]
