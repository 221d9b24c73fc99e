"""The identities of the local account: who they are, what IAM lets them do, and their credentials."""

from __future__ import annotations

import configparser
import fcntl
import io
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from necli.errors import InputError
from necli.home import (
    Home,
    host_errors,
    make_private_folder,
    read_json,
    write_atomically,
    write_json_atomically,
)
from necli.keypolicy.document import Policy

ACCOUNT = "111122223333"
_SESSION = "necli-local"
_ENDED = "parent_before"
_LONG_AGO = "2020-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Credentials:
    """Session credentials as STS gives them; only the access key id is no secret."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    expiration: datetime | None = None
    """None: they last as long as the state folder."""


@dataclass(frozen=True)
class Identity:
    """A role of the local account, in use by one session."""

    name: str
    role_name: str
    policy: Policy
    """What IAM lets this role do, wherever a key policy leaves it to IAM."""
    credentials: Credentials

    @property
    def role_arn(self) -> str:
        return f"arn:aws:iam::{ACCOUNT}:role/{self.role_name}"

    @property
    def session_arn(self) -> str:
        return f"arn:aws:sts::{ACCOUNT}:assumed-role/{self.role_name}/{_SESSION}"

    @property
    def profile(self) -> str:
        """The name of its profile in the AWS files."""
        return self.role_name


@dataclass(frozen=True)
class Identities:
    administrator: Identity
    parent: Identity
    owner: Identity
    parent_before: Identity
    """A session of the parent's role that has ended: what it may do now is nothing."""

    def __iter__(self) -> Iterator[Identity]:
        return iter((self.administrator, self.parent, self.owner))

    def with_access_key(self, access_key_id: str) -> Identity | None:
        known = (*self, self.parent_before)
        return next((who for who in known if who.credentials.access_key_id == access_key_id), None)


def _allow(*actions: str) -> Policy:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    return Policy.from_json({"Version": "2012-10-17", "Statement": [statement]})


# As wide as in the AWS sample, where one role encrypts and decrypts: what keeps the parent from reading
# the data has to be the key policy, here as there.
_ROLES = {
    "administrator": ("necli-administrator", _allow("kms:*")),
    "parent": (
        "necli-parent-instance",
        _allow(
            "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:GenerateRandom",
            "kms:Describe*", "kms:List*", "kms:GetKeyPolicy",
        ),
    ),
    "owner": (
        "necli-data-owner",
        _allow(
            "kms:Encrypt", "kms:GenerateDataKey*", "kms:Describe*", "kms:List*", "kms:GetKeyPolicy",
        ),
    ),
}  # fmt: skip


def ensure_identities(home: Home) -> Identities:
    """The identities of this state folder; their credentials are made at the first call and kept.

    :raises InputError: the file with the credentials is damaged.
    """
    path = home.aws / "identities.json"
    make_private_folder(home.aws)
    with host_errors(f"can't read {path}"), open(home.aws / "lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stored = read_json(path)
        if stored is None:
            stored = {name: _new_credentials() for name in _ROLES}
        if isinstance(stored, dict) and _ENDED not in stored:
            stored[_ENDED] = _new_credentials(expiration=_LONG_AGO)
            write_json_atomically(path, stored)
    try:
        roles = {**_ROLES, _ENDED: _ROLES["parent"]}
        return Identities(
            **{
                name: Identity(name, role, policy, _credentials(stored[name]))
                for name, (role, policy) in roles.items()
            }
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"{path} is damaged", hint=f"remove {path}, then run necli setup again") from exc


def write_aws_files(home: Home, identities: Identities, region: str, endpoint: str, ca_pem: Path) -> None:
    """Write `config` and `credentials` for boto3 and the AWS CLI, one profile an identity."""
    config, credentials = _ini(), _ini()
    config["services necli-local"] = {"kms": f"\nendpoint_url = {endpoint}"}
    for identity in identities:
        config[f"profile {identity.profile}"] = {
            "region": region,
            "ca_bundle": str(ca_pem.absolute()),
            "services": "necli-local",
        }
        credentials[identity.profile] = {
            "aws_access_key_id": identity.credentials.access_key_id,
            "aws_secret_access_key": identity.credentials.secret_access_key,
            "aws_session_token": identity.credentials.session_token,
        }
    write_atomically(home.aws / "config", _text(config))
    write_atomically(home.aws / "credentials", _text(credentials))


def _new_credentials(expiration: str | None = None) -> dict[str, Any]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    return {
        "access_key_id": "ASIA" + "".join(secrets.choice(alphabet) for _ in range(16)),
        "secret_access_key": secrets.token_urlsafe(30),
        "session_token": secrets.token_urlsafe(96),
        "expiration": expiration,
    }


def _credentials(stored: dict[str, Any]) -> Credentials:
    expiration = stored["expiration"]
    return Credentials(
        str(stored["access_key_id"]),
        str(stored["secret_access_key"]),
        str(stored["session_token"]),
        datetime.fromisoformat(expiration) if expiration else None,
    )


def _ini() -> configparser.RawConfigParser:
    return configparser.RawConfigParser()


def _text(config: configparser.RawConfigParser) -> str:
    out = io.StringIO()
    config.write(out)
    return out.getvalue()
