"""What the parent passes to the enclave: short sessions of the enclave's role that can decrypt with one key.

The parent sees these credentials, so they are worth as little as can be: KMS answers them only with an
attestation document beside (the key's policy), they are over within minutes, and allow nothing else. They
live in this process's memory alone.

Not exercised on AWS: the tests run against moto, and against recorded answers where moto has none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from necli.aws import aws_errors
from necli.backends import Credentials
from necli.errors import AccessDenied, UsageError

LIFETIME = timedelta(minutes=15)
"""The shortest that STS gives."""
RENEW_BEFORE = timedelta(minutes=5)
"""More than a request's longest time in the enclave, and what two clocks may differ by."""
SESSION_NAME = "necli-enclave"


def session_policy(key_arn: str) -> str:
    """What limits a session, whatever its role may: to decrypt with this key.

    :raises UsageError: that isn't a key's ARN; a wildcard would open every key.
    """
    resource = key_arn.partition(":key/")[2]
    if not key_arn.startswith("arn:") or not resource or set(key_arn) & set("*?"):
        raise UsageError(f"{key_arn!r} isn't the ARN of one key", hint="name it as arn:aws:kms:…:key/…")
    statement = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": key_arn}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, separators=(",", ":"))


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class EnclaveSessions:
    """The sessions for one enclave; STS is asked only when the last one is nearly over."""

    sts: Any
    role_arn: str
    key_arn: str
    now: Callable[[], datetime] = _now
    _session: tuple[Credentials, datetime] | None = field(default=None, repr=False)
    """With its end."""

    def credentials(self) -> Credentials:
        """Good for at least `RENEW_BEFORE`.

        :raises AccessDenied: this machine's role may not assume the enclave's.
        """
        if self._session is None or self.now() >= self._session[1] - RENEW_BEFORE:
            self._session = self._assume()
        return self._session[0]

    def _assume(self) -> tuple[Credentials, datetime]:
        policy = session_policy(self.key_arn)
        try:
            with aws_errors(f"get a session of the enclave's role {self.role_arn}"):
                answer = self.sts.assume_role(
                    RoleArn=self.role_arn,
                    RoleSessionName=SESSION_NAME,
                    Policy=policy,
                    DurationSeconds=int(LIFETIME.total_seconds()),
                )["Credentials"]
        except AccessDenied as exc:
            if exc.code == "AccessDenied":
                exc.hint = "only the stack's own instance may assume this role: run necli there"
            raise
        session = Credentials(answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"])
        return session, answer["Expiration"]
