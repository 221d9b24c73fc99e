"""The local KMS as a process of its own, and clients for it: what the tests of the service share."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from necli.home import Home
from necli.keypolicy import KeyPolicy, initial_policy
from necli.local.identities import ACCOUNT, Identities, Identity, ensure_identities, write_aws_files
from necli.local.pki import LocalPki
from necli.process import Daemon

REGION = "eu-central-1"


class RunningKms:
    """Starts the real service on a state folder; it is stopped, killed and started again at will."""

    def __init__(self, state: Path, *arguments: str) -> None:
        self.home = Home(state=state, cache=state / "cache")
        self.identities: Identities = ensure_identities(self.home)
        self.pki = LocalPki.ensure(self.home.pki)
        self.port = _free_port()
        self.endpoint = f"https://localhost:{self.port}"
        write_aws_files(self.home, self.identities, REGION, self.endpoint, self.pki.tls_ca_pem)
        self._daemon = Daemon.module(
            "kms", self.home.kms, "necli.local.kms", "--home", state, "--port", self.port, *arguments
        )

    def start(self) -> None:
        self._daemon.start(self._healthy, timeout=20)

    def stop(self) -> None:
        self._daemon.stop()

    def kill(self) -> None:
        pid = self._daemon.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while self._daemon.pid is not None:
            pass

    @property
    def log(self) -> str:
        return self._daemon.log.read_text()

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.pki.tls_ca_pem))

    def client(self, identity: Identity) -> Any:
        return boto3.client(
            "kms",
            region_name=REGION,
            endpoint_url=self.endpoint,
            verify=str(self.pki.tls_ca_pem),
            aws_access_key_id=identity.credentials.access_key_id,
            aws_secret_access_key=identity.credentials.secret_access_key,
            aws_session_token=identity.credentials.session_token,
            config=Config(retries={"total_max_attempts": 1}),
        )

    @property
    def administrator(self) -> Any:
        return self.client(self.identities.administrator)

    @property
    def parent(self) -> Any:
        return self.client(self.identities.parent)

    @property
    def owner(self) -> Any:
        return self.client(self.identities.owner)

    def new_key(self, policy: KeyPolicy | dict[str, Any] | None = None) -> str:
        """The ARN of a new key; with the default policy, which leaves everything to IAM."""
        document = policy.to_json() if isinstance(policy, KeyPolicy) else policy
        given = {"Policy": json.dumps(document)} if document else {}
        arn: str = self.administrator.create_key(**given)["KeyMetadata"]["Arn"]
        return arn

    def initial_policy(self) -> KeyPolicy:
        who = self.identities
        return initial_policy(
            admin_arn=who.administrator.role_arn,
            parent_arn=who.parent.role_arn,
            owner_arn=who.owner.role_arn,
            account=ACCOUNT,
        )

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", context=self.tls, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
