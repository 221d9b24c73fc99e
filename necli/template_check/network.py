"""Rules about what surrounds the instance: endpoints, flow logs, outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from necli.errors import InputError
from necli.keypolicy.conditions import wildcard_match
from necli.keypolicy.document import Policy, Statement
from necli.template_check.finding import TemplateFinding
from necli.template_check.template import Resource, Template, mappings

_DEPUTY_KEYS = ("aws:sourceaccount", "aws:sourcearn", "aws:sourceorgid")
_LOG_KEYS = ("kms:encryptioncontext:aws:logs:arn", *_DEPUTY_KEYS)


def network_findings(template: Template) -> Iterator[TemplateFinding]:
    for endpoint in template.of_type("AWS::EC2::VPCEndpoint"):
        yield from _endpoint_policy(endpoint)
    for role in template.of_type("AWS::IAM::Role"):
        yield from _flow_log_role(role)
    for key in template.of_type("AWS::KMS::Key"):
        yield from _log_key(key)
    if not template.document.get("Outputs"):
        yield TemplateFinding(
            "no-outputs",
            None,
            "note",
            "nothing tells the instance, the key and the role to whoever uses the stack",
            "add Outputs with their ids and ARNs",
        )


def _endpoint_policy(endpoint: Resource) -> Iterator[TemplateFinding]:
    statements = _statements(endpoint.properties.get("PolicyDocument"))
    if not statements or any(map(_allows_all, statements)):
        yield TemplateFinding(
            "endpoint-without-policy",
            endpoint.name,
            "warning",
            "the endpoint lets any account's credentials through: data can leave with foreign ones",
            "add a PolicyDocument: the actions in use, this stack's resources, aws:PrincipalAccount",
        )


def _allows_all(statement: Statement) -> bool:
    return (
        statement.effect == "Allow"
        and not statement.conditions
        and statement.resource is not None
        and "*" in statement.resource.values
        and "*" in statement.action.values
    )


def _flow_log_role(role: Resource) -> Iterator[TemplateFinding]:
    trust = _statements(role.properties.get("AssumeRolePolicyDocument"))
    trusting = [each for each in trust if _trusts_service(each, "vpc-flow-logs.")]
    if any(not _has_condition(each, _DEPUTY_KEYS) for each in trusting):
        yield TemplateFinding(
            "confused-deputy",
            role.name,
            "warning",
            "anybody's flow log may use this role: the service asks for whoever names the role",
            "add conditions on aws:SourceAccount and aws:SourceArn to AssumeRolePolicyDocument",
        )
    policies = [policy.get("PolicyDocument") for policy in mappings(role.properties.get("Policies"))]
    if trusting and any(map(_writes_any_log, (s for policy in policies for s in _statements(policy)))):
        yield TemplateFinding(
            "flow-log-role-too-wide",
            role.name,
            "warning",
            "the flow logs' role may write to every log group of the account",
            "name the log group's ARN in Resource",
        )


def _writes_any_log(statement: Statement) -> bool:
    return (
        statement.effect == "Allow"
        and statement.resource is not None
        and "*" in statement.resource.values
        and any(wildcard_match(action, "logs:PutLogEvents") for action in statement.action.values)
    )


def _log_key(key: Resource) -> Iterator[TemplateFinding]:
    for statement in _statements(key.properties.get("KeyPolicy")):
        if _trusts_service(statement, "logs.") and not _has_condition(statement, _LOG_KEYS):
            yield TemplateFinding(
                "log-key-open",
                key.name,
                "warning",
                "CloudWatch Logs may use this key for any log group of any account",
                "add a condition on kms:EncryptionContext:aws:logs:arn",
            )


def _trusts_service(statement: Statement, prefix: str) -> bool:
    principals = statement.principal.values if statement.principal else ()
    return statement.effect == "Allow" and any(
        each.kind == "Service" and each.value.startswith(prefix) for each in principals
    )


def _has_condition(statement: Statement, keys: tuple[str, ...]) -> bool:
    return any(condition.key.lower() in keys for condition in statement.conditions)


def _statements(policy: Any) -> tuple[Statement, ...]:
    """A policy's statements; none where it can't be read, which CloudFormation refuses by itself."""
    try:
        return Policy.from_json(policy).statements if isinstance(policy, dict) else ()
    except InputError:
        return ()
