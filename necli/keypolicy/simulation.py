"""Questions to a key policy: what would KMS answer this caller?

IAM is taken to allow everything, since whoever administers the account can make it so: what has to hold then
is the key policy. Without a key at hand (a policy in a file) the account is the one that the policy names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from necli.keypolicy.document import KeyPolicy, Policy, Principal, Statement
from necli.keypolicy.evaluate import Decision, RequestContext, caller_arns, evaluate
from necli.keypolicy.measurement_set import ATTESTED, asked_for, register_of
from necli.keypolicy.plan import live_sets

_ACCOUNT_OF_AN_EXAMPLE = "111122223333"
_ACCOUNT = re.compile(r"(?:arn:aws[\w-]*:(?:iam|sts)::)?(\d{12})(?::.*)?")
_WITHOUT_WILDCARDS = str.maketrans({"*": "x", "?": "x"})
IAM_ALLOWS_ALL = Policy.from_json({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})
OUTSIDER = "arn:aws:iam::999999999999:role/somebody-in-another-account"


@dataclass(frozen=True)
class Simulation:
    """A key policy in force, on a key of `account`."""

    policy: KeyPolicy
    key_arn: str

    @classmethod
    def of(cls, policy: KeyPolicy, key_arn: str | None = None) -> Simulation:
        return cls(policy, key_arn or f"arn:aws:kms:eu-central-1:{_account_named_in(policy)}:key/in-a-file")

    @property
    def account(self) -> str:
        return self.key_arn.split(":")[4]

    @property
    def somebody(self) -> str:
        return somebody(self.account)

    @cached_property
    def callers(self) -> list[str]:
        """Everybody named, and one who isn't of this account and of another: KMS tells no others apart."""
        named = [
            caller
            for statement in self.policy.statements
            if statement.effect == "Allow"
            for principal in (statement.principal.values if statement.principal else ())
            for caller in self.callers_for(principal)
        ]
        return list(dict.fromkeys([*named, self.somebody, OUTSIDER]))

    @cached_property
    def accepted(self) -> list[dict[str, str]]:
        """Examples of what the policy means to accept: the values of registers that go together."""
        if live := live_sets(self.policy):
            return [dict(each.values) for each in live]
        for effect in ("Allow", "Deny"):
            named = [asked_for(each.conditions) for each in self.policy.statements if each.effect == effect]
            together = {register: values for asked in named for register, values in asked.items() if values}
            if together:
                count = max(map(len, together.values()))
                return [
                    {register: values[min(number, len(values) - 1)] for register, values in together.items()}
                    for number in range(count)
                ]
        return []

    def callers_for(self, principal: Principal) -> list[str]:
        """Who a Principal element's entry lets in: itself, or an example for everybody whom it stands for."""
        if principal.kind != "AWS" or not principal.valid:
            return []
        if principal.value == "*":
            return [self.somebody, OUTSIDER]
        return [somebody(account_of(principal.value)) if is_account(principal) else principal.value]

    def decide(
        self,
        caller: str,
        action: str,
        attested: Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Decision:
        request = request_of(caller, action, self.key_arn, attested, context)
        return evaluate(self.policy, request, IAM_ALLOWS_ALL)

    def allows(
        self,
        caller: str,
        action: str,
        attested: Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> bool:
        return self.decide(caller, action, attested, context).allowed

    def who_may(self, action: str, attested: Mapping[str, str] | None = None) -> list[str]:
        return [caller for caller in self.callers if self.allows(caller, action, attested)]

    def with_only(self, allow: Statement) -> Simulation:
        """The same with no other Allow than this one: what it gives by itself."""
        denies = [statement.body for statement in self.policy.statements if statement.effect == "Deny"]
        return self._with_statements([allow.body, *denies])

    def with_grant(self, grantee: str) -> Simulation:
        """The same and a grant, which allows like a statement of its own and knows no attestation."""
        grant = {
            "Effect": "Allow",
            "Principal": {"AWS": grantee},
            "Action": ["kms:Decrypt", "kms:ReEncryptFrom"],
            "Resource": "*",
        }
        return self._with_statements([*(statement.body for statement in self.policy.statements), grant])

    def _with_statements(self, statements: list[object]) -> Simulation:
        return Simulation(KeyPolicy.from_json({"Statement": statements}), self.key_arn)


def request_of(
    caller: str,
    action: str,
    key_arn: str,
    attested: Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
) -> RequestContext:
    """A request with the condition keys that KMS knows of it; `attested` is what registers hold."""
    arns, account = caller_arns(caller), account_of(caller)
    values = {
        "aws:PrincipalAccount": account,
        "aws:PrincipalArn": arns[-1],
        "aws:PrincipalIsAWSService": "false",
        "aws:SecureTransport": "true",
        "aws:ViaAWSService": "false",
        "kms:CallerAccount": account,
        **{f"{ATTESTED}{name}": value for name, value in (attested or {}).items()},
        **(context or {}),
    }
    return RequestContext(arns, action, key_arn, account, values)


def favourable_context(statement: Statement) -> dict[str, str]:
    """What a caller would have to bring along to meet the statement's conditions, attestation apart."""
    return {
        condition.key: condition.values[0].translate(_WITHOUT_WILDCARDS)
        for condition in statement.conditions
        if condition.values and register_of(condition.key) is None and "Not" not in condition.operator
    }


def is_account(principal: Principal) -> bool:
    """Whether it stands for a whole account: what IAM there allows is allowed."""
    return principal.kind == "AWS" and (principal.value.isdecimal() or principal.value.endswith(":root"))


def somebody(account: str) -> str:
    """A role of the account that no policy names, and to which IAM allows everything."""
    return f"arn:aws:iam::{account}:role/whoever-iam-allows"


def account_of(arn: str) -> str:
    match = _ACCOUNT.fullmatch(arn)
    return match[1] if match else _ACCOUNT_OF_AN_EXAMPLE


def _account_named_in(policy: KeyPolicy) -> str:
    for statement in policy.statements:
        for principal in statement.principal.values if statement.principal else ():
            if principal.kind == "AWS" and _ACCOUNT.fullmatch(principal.value):
                return account_of(principal.value)
    return _ACCOUNT_OF_AN_EXAMPLE
