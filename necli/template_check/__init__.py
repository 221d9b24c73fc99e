"""Finds in a CloudFormation template what no scanner sees: faults of an enclave's host and key policy."""

from __future__ import annotations

from necli.keypolicy import Policy
from necli.template_check.finding import TemplateFinding
from necli.template_check.hosts import host_findings
from necli.template_check.keys import enclave_keys, key_findings
from necli.template_check.network import network_findings
from necli.template_check.template import InvalidTemplate, Template

__all__ = ["InvalidTemplate", "Template", "TemplateFinding", "check_template"]

_ORDER = ("error", "warning", "note")


def check_template(text: str, *, stack_policy: str | None = None) -> list[TemplateFinding]:
    """What is wrong with the template, the worst first.

    :param stack_policy: the JSON of the policy that the stack will have; it may refuse updates of the key.
    :raises InvalidTemplate: it can't be read.
    :raises InputError: the stack policy can't be read.
    """
    template = Template.parse(text)
    keys = enclave_keys(template)
    policy = Policy.from_json(stack_policy) if stack_policy is not None else None
    findings = [
        *key_findings(template, keys, policy),
        *host_findings(template, has_enclave_key=bool(keys)),
        *network_findings(template),
    ]
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
