"""Why KMS refused the enclave the data key: the live policy, put to what the enclave attests."""

from __future__ import annotations

from necli.backends import EnclaveInfo
from necli.envelope import context_of
from necli.errors import AccessDenied
from necli.keypolicy.explain import Explanation
from necli.workflows.policy import attested_by, explain_policy
from necli.workflows.workload import Workload

_UPDATE = "run necli policy update"


def explain_denial(
    workload: Workload, enclave: EnclaveInfo, message: bytes, aws_message: str
) -> AccessDenied:
    """An error that names the statement that decided, the condition, what it wants and what it got."""
    if "identity-based policy" in aws_message or "service control policy" in aws_message:
        return AccessDenied(
            f"KMS refused the data key: {aws_message}",
            hint=f"let IAM allow kms:Decrypt to {workload.backend.parent_arn}: aws iam put-role-policy",
            code="iam_denied",
        )
    attested = attested_by(workload, enclave)
    explanation = explain_policy(workload, attested, context=context_of(message))
    if explanation.decision.allowed:
        return AccessDenied(
            f"KMS refused the data key, and its policy isn't the reason: {aws_message}",
            hint="run necli doctor",
            code="access_denied",
        )
    return AccessDenied(
        "; ".join((_first(enclave), *explanation.sentences)),
        hint=_hint(enclave, explanation),
        code=_code(enclave, explanation),
    )


def _first(enclave: EnclaveInfo) -> str:
    if enclave.debug:
        return f"KMS refused the data key: the enclave {enclave.name} runs in debug mode and attests zeros"
    return "KMS refused the data key"


def _hint(enclave: EnclaveInfo, explanation: Explanation) -> str | None:
    return f"necli enclave stop {enclave.name}, then necli up" if enclave.debug else explanation.fix


def _code(enclave: EnclaveInfo, explanation: Explanation) -> str:
    if enclave.debug:
        return "debug_mode"
    return "policy_not_updated" if explanation.fix == _UPDATE else "access_denied"
