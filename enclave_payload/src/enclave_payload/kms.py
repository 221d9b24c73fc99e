"""The enclave's KMS client: botocore's own, whose Decrypt is attested and ends its TLS in here.

`native` adds a fresh attestation document to every Decrypt and opens the `CiphertextForRecipient` that KMS
answers with, so the data key exists in plaintext only inside the enclave. TLS is verified against the true
host name of KMS with the trust roots in the image; the parent merely moves bytes between two sockets.

`kmstool` hands Decrypt to AWS's `kmstool_enclave_cli`, which does the same in C. It takes credentials as
arguments, which nobody outside the enclave sees, but no encryption context, and it loses KMS's reasons.

Who asks differs from request to request, so credentials come from the context: `with credentials(...):`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import botocore.session
from botocore.awsrequest import AWSHTTPSConnection, AWSHTTPSConnectionPool
from botocore.config import Config as BotocoreConfig
from botocore.credentials import CredentialProvider, CredentialResolver, ReadOnlyCredentials
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import URLLib3Session
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from enclave_payload.cms import EnvelopeError, open_enveloped_data
from enclave_payload.config import Address, ConfigError, KmsConfig, UnixAddress, VsockAddress
from enclave_payload.errors import PayloadError
from enclave_payload.nsm import Nsm, NsmError

_RSA_BITS: Final = 2048
_MAX_ATTEMPTS: Final = 2
_MAX_CONNECTIONS: Final = 16
_KMSTOOL_CID: Final = 3
_KMSTOOL_ANSWER: Final = re.compile(rb"PLAINTEXT: ([A-Za-z0-9+/]+=*)\s*")


@dataclass(frozen=True)
class Credentials:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


request_credentials: ContextVar[Credentials] = ContextVar("request_credentials")


@contextmanager
def credentials(value: Credentials) -> Iterator[None]:
    """Ask KMS with these, within this context and thread."""
    token = request_credentials.set(value)
    try:
        yield
    finally:
        request_credentials.reset(token)


def make_kms_client(config: KmsConfig, nsm: Nsm) -> Any:
    """A botocore KMS client for the whole process; any thread may use it. Raises ConfigError."""
    client = _botocore_client(config)
    events = client.meta.events
    if config.client == "kmstool":
        events.register("before-call.kms.Decrypt", _KmsTool(config).decrypt)
        return client
    recipient = _Recipient(nsm)
    events.register("provide-client-params.kms.Decrypt", recipient.attest)
    events.register("before-send.kms", _Session(config).send_request)
    events.register("after-call.kms.Decrypt", recipient.open)
    return client


def _botocore_client(config: KmsConfig) -> Any:
    session = botocore.session.Session()
    session.register_component("credential_provider", CredentialResolver([_RequestProvider()]))
    return session.create_client(
        "kms",
        region_name=config.region,
        endpoint_url=f"https://{config.host}",
        config=BotocoreConfig(
            retries={"total_max_attempts": _MAX_ATTEMPTS, "mode": "standard"},
            connect_timeout=config.timeout_s,
            read_timeout=config.timeout_s,
        ),
    )


class _RequestProvider(CredentialProvider):  # type: ignore[misc]
    METHOD = "request"

    def load(self) -> BotocoreCredentials:
        return _RequestCredentials("", "", method=self.METHOD)


class _RequestCredentials(BotocoreCredentials):  # type: ignore[misc]
    """Stands for the credentials of whatever request is being signed."""

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        current = _current_credentials()
        return ReadOnlyCredentials(current.access_key_id, current.secret_access_key, current.session_token)


def _current_credentials() -> Credentials:
    try:
        return request_credentials.get()
    except LookupError:
        raise NoCredentialsError from None


class _Recipient:
    """This enclave as the recipient of what KMS decrypts. The key pair lives as long as the process."""

    def __init__(self, nsm: Nsm) -> None:
        self._nsm = nsm
        self._private_key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        self._public_key = self._private_key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    def attest(self, params: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        try:
            document = self._nsm.attest(public_key=self._public_key)
        except NsmError as exc:
            raise PayloadError("internal", "the enclave can't attest itself") from exc
        recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": document}
        return {**params, "Recipient": recipient}

    def open(self, http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
        if http_response.status_code >= 300:
            return
        # A key that came in the clear is one that KMS, or whoever plays it, would tell anybody.
        sealed = parsed.pop("CiphertextForRecipient", None)
        parsed.pop("Plaintext", None)
        if sealed is None:
            raise PayloadError("kms_error", "KMS didn't encrypt its answer for this enclave")
        try:
            parsed["Plaintext"] = open_enveloped_data(sealed, self._private_key)
        except EnvelopeError as exc:
            raise PayloadError("kms_error", "KMS's answer can't be opened by this enclave") from exc


class _Session(URLLib3Session):  # type: ignore[misc]
    """HTTPS to the host that the URL names, over a socket to `config.address`: the name is never looked up.

    Neither proxies nor trust stores of the environment count.
    """

    def __init__(self, config: KmsConfig) -> None:
        _check_trust_roots(config)
        super().__init__(
            verify=str(config.trust_roots), timeout=config.timeout_s, max_pool_connections=_MAX_CONNECTIONS
        )
        self._manager.pool_classes_by_scheme = {"https": _pool_class(config.address)}

    def send_request(self, request: Any, **_: Any) -> Any:
        return self.send(request)


def _check_trust_roots(config: KmsConfig) -> None:
    try:
        ssl.create_default_context(cafile=config.trust_roots)
    except OSError as exc:  # which ssl.SSLError is
        raise ConfigError(f"config.kms.trust_roots: {config.trust_roots}: {exc}") from exc


def _pool_class(address: Address) -> type[AWSHTTPSConnectionPool]:
    class Connection(AWSHTTPSConnection):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            try:
                return _connect(address, self.timeout)
            except TimeoutError as exc:
                raise ConnectTimeoutError(self, f"no answer from {address}") from exc
            except OSError as exc:
                raise NewConnectionError(self, f"can't connect to {address}: {exc}") from exc

    class Pool(AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def _connect(address: Address, timeout: float) -> socket.socket:
    target: str | tuple[int, int]
    match address:
        case UnixAddress(path):
            family, target = socket.AF_UNIX, str(path)
        case VsockAddress(port, cid):
            family, target = socket.AF_VSOCK, (cid, port)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(target)
    except BaseException:
        connection.close()
        raise
    return connection


class _KmsTool:
    """`kmstool_enclave_cli decrypt`. Nothing of its stderr goes anywhere: the session token is in it."""

    def __init__(self, config: KmsConfig) -> None:
        address = config.address
        if not isinstance(address, VsockAddress) or address.cid != _KMSTOOL_CID:
            raise ConfigError(f"config.kms.address: kmstool_enclave_cli needs vsock:{_KMSTOOL_CID}:PORT")
        self._command = [str(config.kmstool), "decrypt", "--region", config.region]
        self._command += ["--proxy-port", str(address.port)]
        self._timeout_s = config.timeout_s

    def decrypt(self, params: Mapping[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        """Answer a Decrypt in the place of KMS; it says nothing of the key, so it's told which one to use."""
        request = json.loads(params["body"])
        if request.get("EncryptionContext"):
            raise PayloadError("wrong_context", "kmstool_enclave_cli can't send an encryption context")
        key_id = request["KeyId"]
        arguments = ["--ciphertext", request["CiphertextBlob"], "--key-id", key_id]
        arguments += ["--encryption-algorithm", "SYMMETRIC_DEFAULT"]
        answer = self._run([*_credential_arguments(_current_credentials()), *arguments])
        return SimpleNamespace(status_code=200), {"KeyId": key_id, "Plaintext": _kmstool_plaintext(answer)}

    def _run(self, arguments: list[str]) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:  # `from None`: its text holds the arguments
            raise PayloadError("kms_unreachable", "kmstool_enclave_cli didn't answer in time") from None
        except OSError as exc:
            raise PayloadError("internal", "kmstool_enclave_cli can't be run") from exc
        if done.returncode != 0:
            detail = {"exit_status": str(done.returncode)}
            raise PayloadError("kms_error", "kmstool_enclave_cli failed; it doesn't say why", detail=detail)
        return done.stdout


def _credential_arguments(value: Credentials) -> list[str]:
    if value.session_token is None:
        raise PayloadError("credentials_missing", "kmstool_enclave_cli needs a session token")
    return [
        *("--aws-access-key-id", value.access_key_id),
        *("--aws-secret-access-key", value.secret_access_key),
        *("--aws-session-token", value.session_token),
    ]


def _kmstool_plaintext(answer: bytes) -> bytes:
    if match := _KMSTOOL_ANSWER.fullmatch(answer):
        with suppress(binascii.Error):
            return base64.b64decode(match[1], validate=True)
    raise PayloadError("kms_error", "kmstool_enclave_cli gave an answer that can't be understood")
