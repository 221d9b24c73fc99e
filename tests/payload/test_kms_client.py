"""The enclave's KMS client: real botocore and SDK, over real TLS on the socket that stands for vsock."""

from __future__ import annotations

import base64
import json
import shlex
import socket
import socketserver
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import pytest
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient
from aws_encryption_sdk.exceptions import DecryptKeyError
from aws_encryption_sdk.identifiers import Algorithm
from aws_encryption_sdk.key_providers.kms import KMSMasterKey

from enclave_payload.config import ConfigError, KmsConfig, UnixAddress, VsockAddress
from enclave_payload.errors import PayloadError
from enclave_payload.kms import Credentials, credentials, make_kms_client
from enclave_payload.nsm import Nsm
from necli.allow_list import write_allow_list
from necli.attestation import AttestationDocument, verify_document
from necli.keypolicy import plan_measurements
from necli.local.cms import seal_enveloped_data
from necli.local.nsm import SimulatedNsm, serve_nsm
from necli.local.pki import LocalPki
from necli.measurements import Measurements
from necli.process import Daemon
from tests.local.running_kms import RunningKms

HOST = "kms.eu-central-1.amazonaws.com"
KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
DATA_KEY = bytes(range(32))
WHO = Credentials("AKIDEXAMPLE", "a secret", "a token")
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class TlsKms(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers KMS requests with `answer`, and keeps them; `connections` counts the TLS handshakes begun."""

    daemon_threads = True

    def __init__(self, path: Path, context: ssl.SSLContext, answer: Answer) -> None:
        super().__init__(str(path), _Handler)
        self.context = context
        self.answer = answer
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.connections = 0

    def get_request(self) -> tuple[socket.socket, str]:
        connection, _ = self.socket.accept()
        self.connections += 1
        return connection, "enclave"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away during the handshake is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TlsKms

    def setup(self) -> None:
        self.request.settimeout(5)
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
        status, members = self.server.answer(body)
        data = json.dumps(members).encode()
        self.send_response(status)
        self.send_header("content-type", "application/x-amz-json-1.1")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "enclave"

    def log_message(self, format: str, *args: Any) -> None:
        pass


def sealed(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    attested = AttestationDocument.parse(base64.b64decode(request["Recipient"]["AttestationDocument"]))
    assert attested.public_key
    envelope = base64.b64encode(seal_enveloped_data(DATA_KEY, attested.public_key)).decode()
    return 200, {"KeyId": request["KeyId"], "CiphertextForRecipient": envelope}


def in_the_clear(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"KeyId": request["KeyId"], "Plaintext": base64.b64encode(DATA_KEY).decode()}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> LocalPki:
    return LocalPki.ensure(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def nsm(pki: LocalPki, tmp_path: Path) -> Iterator[Nsm]:
    with simulated_nsm(pki, tmp_path / "nsm.sock") as nsm:
        yield nsm


@contextmanager
def simulated_nsm(pki: LocalPki, path: Path) -> Iterator[Nsm]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        module = SimulatedNsm(pki, "i-0-enc0", PCRS)
        threading.Thread(target=serve_nsm, args=(module, listener), daemon=True).start()
        yield Nsm(path)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def config(pki: LocalPki, tmp_path: Path) -> KmsConfig:
    return KmsConfig(
        client="native",
        region="eu-central-1",
        host=HOST,
        address=UnixAddress(tmp_path / "3-8000.sock"),
        trust_roots=pki.tls_ca_pem,
        timeout_s=2,
        kmstool=tmp_path / "kmstool_enclave_cli",
    )


@pytest.fixture
def kms(pki: LocalPki, tmp_path: Path) -> Iterator[TlsKms]:
    with TlsKms(tmp_path / "3-8000.sock", pki.server_context([HOST]), sealed) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(config: KmsConfig, nsm: Nsm) -> Any:
    return make_kms_client(config, nsm)


def decrypt(client: Any, who: Credentials = WHO, **more: Any) -> Any:
    with credentials(who):
        return client.decrypt(KeyId=KEY_ARN, CiphertextBlob=b"wrapped", **more)


class TestAttestedDecrypt:
    def test_the_sealed_data_key_is_opened(self, client: Any, kms: TlsKms) -> None:
        answer = decrypt(client)
        assert answer["Plaintext"] == DATA_KEY
        assert "CiphertextForRecipient" not in answer

    def test_the_request_carries_a_document_for_the_enclaves_key(
        self, client: Any, kms: TlsKms, pki: LocalPki
    ) -> None:
        decrypt(client, EncryptionContext={"a": "b"})
        ((headers, body),) = kms.requests
        assert headers["host"] == HOST
        assert headers["x-amz-target"] == "TrentService.Decrypt"
        assert body["EncryptionContext"] == {"a": "b"}
        assert body["Recipient"]["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
        document = base64.b64decode(body["Recipient"]["AttestationDocument"])
        verify_document(document, roots=[pki.simulated_root], expected=PCRS)

    def test_each_request_has_a_document_of_its_own_but_the_key_pair_stays(
        self, client: Any, kms: TlsKms
    ) -> None:
        decrypt(client)
        decrypt(client)
        first, second = (
            base64.b64decode(body["Recipient"]["AttestationDocument"]) for _, body in kms.requests
        )
        assert first != second
        assert AttestationDocument.parse(first).public_key == AttestationDocument.parse(second).public_key

    def test_a_data_key_in_the_clear_is_refused(self, client: Any, kms: TlsKms) -> None:
        kms.answer = in_the_clear
        with pytest.raises(PayloadError, match="didn't encrypt its answer for this enclave") as caught:
            decrypt(client)
        assert caught.value.code == "kms_error"

    def test_of_two_answers_only_the_sealed_one_counts(self, client: Any, kms: TlsKms) -> None:
        clear = {"Plaintext": base64.b64encode(bytes(32)).decode()}
        kms.answer = lambda request: (200, sealed(request)[1] | clear)
        assert decrypt(client)["Plaintext"] == DATA_KEY

    def test_an_answer_sealed_for_another_is_refused(self, client: Any, kms: TlsKms) -> None:
        garbage = base64.b64encode(b"garbage").decode()
        kms.answer = lambda request: (200, {"KeyId": KEY_ARN, "CiphertextForRecipient": garbage})
        with pytest.raises(PayloadError, match="can't be opened") as caught:
            decrypt(client)
        assert caught.value.code == "kms_error"

    def test_without_an_nsm_nothing_is_sent(self, config: KmsConfig, kms: TlsKms, tmp_path: Path) -> None:
        with pytest.raises(PayloadError, match="can't attest itself") as caught:
            decrypt(make_kms_client(config, Nsm(tmp_path / "no-nsm")))
        assert caught.value.code == "internal"
        assert kms.requests == []

    def test_kms_refusals_arrive_as_botocore_raises_them(self, client: Any, kms: TlsKms) -> None:
        kms.answer = lambda _: (400, {"__type": "AccessDeniedException", "Message": "User: x is not"})
        with pytest.raises(client.exceptions.ClientError, match=r"\(AccessDeniedException\).*User: x is not"):
            decrypt(client)
        assert len(kms.requests) == 1


class TestCredentials:
    def test_each_request_is_signed_with_its_own(self, client: Any, kms: TlsKms) -> None:
        decrypt(client, Credentials("AKIDFIRST", "s", "first token"))
        decrypt(client, Credentials("AKIDSECOND", "s"))
        (first, _), (second, _) = kms.requests
        assert "Credential=AKIDFIRST/" in first["authorization"]
        assert first["x-amz-security-token"] == "first token"
        assert "Credential=AKIDSECOND/" in second["authorization"]
        assert "x-amz-security-token" not in second

    def test_requests_at_the_same_time_dont_mix_them(self, client: Any, kms: TlsKms) -> None:
        barrier = threading.Barrier(8)

        def ask(number: int) -> None:
            with credentials(Credentials(f"AKID{number}", "s", f"token {number}")):
                barrier.wait()
                client.decrypt(KeyId=KEY_ARN, CiphertextBlob=b"%d" % number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kms.requests) == 8
        for headers, body in kms.requests:
            number = base64.b64decode(body["CiphertextBlob"]).decode()
            assert f"Credential=AKID{number}/" in headers["authorization"]
            assert headers["x-amz-security-token"] == f"token {number}"

    def test_without_any_nothing_is_sent_whatever_the_environment_offers(
        self, client: Any, kms: TlsKms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(botocore.exceptions.NoCredentialsError):
            client.decrypt(KeyId=KEY_ARN, CiphertextBlob=b"wrapped")
        assert kms.requests == []

    def test_they_are_gone_after_their_request(self, client: Any, kms: TlsKms) -> None:
        decrypt(client)
        with pytest.raises(botocore.exceptions.NoCredentialsError):
            client.decrypt(KeyId=KEY_ARN, CiphertextBlob=b"wrapped")

    def test_they_dont_show(self) -> None:
        assert repr(WHO) == "Credentials(access_key_id='AKIDEXAMPLE')"


class TestTls:
    def test_one_connection_serves_many_requests(self, client: Any, kms: TlsKms) -> None:
        for _ in range(3):
            decrypt(client)
        assert len(kms.requests) == 3
        assert kms.connections == 1

    def test_a_server_with_another_name_is_refused(self, client: Any, kms: TlsKms, pki: LocalPki) -> None:
        kms.context = pki.server_context(["kms.us-east-1.amazonaws.com", "localhost"])
        with pytest.raises(botocore.exceptions.SSLError, match="doesn't match"):
            decrypt(client)
        assert kms.requests == []

    def test_a_server_of_another_ca_is_refused(self, client: Any, kms: TlsKms, tmp_path: Path) -> None:
        kms.context = LocalPki.ensure(tmp_path / "other").server_context([HOST])
        with pytest.raises(botocore.exceptions.SSLError, match="unable to get local issuer"):
            decrypt(client)
        assert kms.requests == []

    @pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
    def test_no_variable_adds_a_trust_root(
        self,
        config: KmsConfig,
        nsm: Nsm,
        kms: TlsKms,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
    ) -> None:
        other = LocalPki.ensure(tmp_path / "other")
        kms.context = other.server_context([HOST])
        monkeypatch.setenv(variable, str(other.tls_ca_pem))
        with pytest.raises(botocore.exceptions.SSLError, match="unable to get local issuer"):
            decrypt(make_kms_client(config, nsm))

    @pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_KMS", "HTTPS_PROXY", "https_proxy"])
    def test_no_variable_leads_elsewhere(
        self, config: KmsConfig, nsm: Nsm, kms: TlsKms, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
        decrypt(make_kms_client(config, nsm))
        assert kms.requests[0][0]["host"] == HOST

    @pytest.mark.parametrize("content", [None, "", "not a certificate"])
    def test_bad_trust_roots_are_refused_before_any_request(
        self, config: KmsConfig, nsm: Nsm, tmp_path: Path, content: str | None
    ) -> None:
        path = tmp_path / "roots.pem"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match="trust_roots"):
            make_kms_client(replace(config, trust_roots=path), nsm)


class TestTrouble:
    def test_a_parent_without_a_proxy_is_an_endpoint_that_cant_be_reached(self, client: Any) -> None:
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            decrypt(client)

    def test_a_proxy_that_hangs_is_given_up(self, config: KmsConfig, nsm: Nsm) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            assert isinstance(config.address, UnixAddress)
            listener.bind(str(config.address.path))
            listener.listen()
            with pytest.raises(botocore.exceptions.ReadTimeoutError):
                decrypt(make_kms_client(replace(config, timeout_s=1), nsm))

    def test_a_connection_that_is_cut_is_tried_once_again(self, client: Any, kms: TlsKms) -> None:
        answers = iter([ConnectionResetError, None])

        def cut_once(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            if error := next(answers):
                raise error
            return sealed(request)

        kms.answer = cut_once
        assert decrypt(client)["Plaintext"] == DATA_KEY
        assert len(kms.requests) == 2

    def test_a_kms_that_is_down_is_asked_twice_and_no_more(self, client: Any, kms: TlsKms) -> None:
        kms.answer = lambda _: (500, {"__type": "KMSInternalException"})
        with pytest.raises(client.exceptions.ClientError, match="KMSInternalException"):
            decrypt(client)
        assert len(kms.requests) == 2


@pytest.fixture(scope="module")
def local_kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def parents_proxy(local_kms: RunningKms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnixAddress]:
    folder = tmp_path_factory.mktemp("proxy")
    write_allow_list(folder / "allow.yaml", "eu-central-1")
    address = folder / "3-8000.sock"
    proxy = Daemon.module(
        "proxy",
        folder,
        "necli.local.proxy",
        *("--listen", address, "--allow-list", folder / "allow.yaml", "--remote", f"{HOST}:443"),
        *("--resolve", f"127.0.0.1:{local_kms.port}", "--status", folder / "status.json"),
    )
    proxy.start(address.exists, timeout=10)
    yield UnixAddress(address)
    proxy.stop()


class TestWithTheLocalKms:
    """Encryption SDK, payload client, NSM, parent's proxy, local KMS and key policy, as for an enclave."""

    @pytest.fixture
    def client(
        self, config: KmsConfig, local_kms: RunningKms, parents_proxy: UnixAddress, tmp_path: Path
    ) -> Iterator[Any]:
        with simulated_nsm(local_kms.pki, tmp_path / "nsm.sock") as nsm:
            roots = local_kms.pki.tls_ca_pem
            yield make_kms_client(replace(config, address=parents_proxy, trust_roots=roots), nsm)

    @pytest.fixture
    def sdk(self) -> EncryptionSDKClient:
        return EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)

    def message_for(self, image: dict[int, bytes], kms: RunningKms, sdk: EncryptionSDKClient) -> Any:
        """A message under a key that the policy binds to this image, and the key's ARN."""
        measurements = Measurements(image[0], image[1], image[2])
        parent_arn = kms.identities.parent.role_arn
        key_arn = kms.new_key(
            plan_measurements(kms.initial_policy(), measurements, parent_arn=parent_arn).after
        )
        message, _ = sdk.encrypt(
            source=b"a photo",
            key_provider=KMSMasterKey(key_id=key_arn, client=kms.owner),
            encryption_context={"necli:workload": "object-detection"},
        )
        return message, key_arn

    def parent(self, kms: RunningKms) -> Credentials:
        given = kms.identities.parent.credentials
        return Credentials(given.access_key_id, given.secret_access_key, given.session_token)

    def test_the_sdk_decrypts_what_the_policy_binds_to_this_image(
        self, client: Any, sdk: EncryptionSDKClient, local_kms: RunningKms
    ) -> None:
        message, key_arn = self.message_for(PCRS, local_kms, sdk)
        with credentials(self.parent(local_kms)):
            key = KMSMasterKey(key_id=key_arn, client=client)
            assert sdk.decrypt(source=message, key_provider=key)[0] == b"a photo"

    def test_the_sdk_cant_decrypt_what_the_policy_binds_to_another_image(
        self, client: Any, sdk: EncryptionSDKClient, local_kms: RunningKms
    ) -> None:
        message, key_arn = self.message_for(PCRS | {2: b"\xff" * 48}, local_kms, sdk)
        with credentials(self.parent(local_kms)), pytest.raises(DecryptKeyError):
            sdk.decrypt(source=message, key_provider=KMSMasterKey(key_id=key_arn, client=client))

    def test_the_parent_cant_decrypt_it_without_the_enclave(
        self, sdk: EncryptionSDKClient, local_kms: RunningKms
    ) -> None:
        message, key_arn = self.message_for(PCRS, local_kms, sdk)
        with pytest.raises(DecryptKeyError):
            sdk.decrypt(source=message, key_provider=KMSMasterKey(key_id=key_arn, client=local_kms.parent))


class TestKmsTool:
    """With a stand-in for AWS's executable that keeps its arguments and answers as told."""

    @pytest.fixture
    def config(self, config: KmsConfig) -> KmsConfig:
        return replace(config, client="kmstool", address=VsockAddress(port=8000, cid=3))

    @pytest.fixture
    def nsm(self) -> Nsm:
        return Nsm("/nowhere")

    def install(self, config: KmsConfig, answer: str) -> None:
        script = f'#!/bin/sh\nprintf "%s\\n" "$@" > {shlex.quote(str(self.seen(config)))}\n{answer}\n'
        config.kmstool.write_text(script)
        config.kmstool.chmod(config.kmstool.stat().st_mode | stat.S_IXUSR)

    def seen(self, config: KmsConfig) -> Path:
        return config.kmstool.with_suffix(".arguments")

    def test_its_answer_is_kms_answer(self, config: KmsConfig, client: Any) -> None:
        self.install(config, f"echo 'PLAINTEXT: {base64.b64encode(DATA_KEY).decode()}'")
        answer = decrypt(client)
        assert answer["Plaintext"] == DATA_KEY
        assert answer["KeyId"] == KEY_ARN

    def test_it_is_asked_for_this_key_with_the_requests_credentials(
        self, config: KmsConfig, client: Any
    ) -> None:
        self.install(config, "echo 'PLAINTEXT: AAAA'")
        decrypt(client)
        assert self.seen(config).read_text().splitlines() == [
            "decrypt",
            *("--region", "eu-central-1", "--proxy-port", "8000"),
            *("--aws-access-key-id", WHO.access_key_id),
            *("--aws-secret-access-key", WHO.secret_access_key),
            *("--aws-session-token", "a token"),
            *("--ciphertext", base64.b64encode(b"wrapped").decode()),
            *("--key-id", KEY_ARN, "--encryption-algorithm", "SYMMETRIC_DEFAULT"),
        ]

    def test_the_encryption_sdk_decrypts_through_it(self, config: KmsConfig, client: Any) -> None:
        made = {"KeyId": KEY_ARN, "Plaintext": DATA_KEY, "CiphertextBlob": b"wrapped"}
        client.meta.events.register(
            "before-call.kms.GenerateDataKey", lambda **_: (SimpleNamespace(status_code=200), made)
        )
        self.install(config, f"echo 'PLAINTEXT: {base64.b64encode(DATA_KEY).decode()}'")
        sdk = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
        key = KMSMasterKey(key_id=KEY_ARN, client=client)
        # The SDK's default algorithm signs, and puts the signer's key into the encryption context.
        algorithm = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
        message, _ = sdk.encrypt(source=b"a photo", key_provider=key, algorithm=algorithm)
        with credentials(WHO):
            assert sdk.decrypt(source=message, key_provider=key)[0] == b"a photo"

    def test_a_message_with_an_encryption_context_is_refused(self, config: KmsConfig, client: Any) -> None:
        self.install(config, "echo 'PLAINTEXT: AAAA'")
        with pytest.raises(PayloadError, match="encryption context") as caught:
            decrypt(client, EncryptionContext={"a": "b"})
        assert caught.value.code == "wrong_context"
        assert not self.seen(config).exists()

    def test_credentials_without_a_session_token_are_refused(self, config: KmsConfig, client: Any) -> None:
        with pytest.raises(PayloadError) as caught:
            decrypt(client, Credentials("AKID", "secret"))
        assert caught.value.code == "credentials_missing"

    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            ("exit 255", "kms_error"),
            ("exit 1", "kms_error"),
            ("kill -SEGV $$", "kms_error"),
            ("exec sleep 30", "kms_unreachable"),
            ("true", "kms_error"),
            ("echo 'PLAINTEXT: '", "kms_error"),
            ("echo 'PLAINTEXT: AAA'", "kms_error"),
            ("echo 'CIPHERTEXT: AAAA'", "kms_error"),
            ("echo 'PLAINTEXT: AAAA'; exit 255", "kms_error"),
        ],
    )
    def test_every_failure_is_an_error_that_tells_no_secret(
        self, config: KmsConfig, nsm: Nsm, answer: str, code: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.install(config, f'echo "$@" >&2\n{answer}')
        with pytest.raises(PayloadError) as caught:
            decrypt(make_kms_client(replace(config, timeout_s=1), nsm))
        assert caught.value.code == code
        error: BaseException | None = caught.value
        while error and not error.__suppress_context__:
            assert "secret" not in str(error)
            error = error.__cause__ or error.__context__
        assert "secret" not in "".join(capfd.readouterr())

    def test_an_absent_executable_is_an_internal_error(self, client: Any) -> None:
        with pytest.raises(PayloadError, match="can't be run") as caught:
            decrypt(client)
        assert caught.value.code == "internal"

    def test_it_reaches_kms_only_over_the_parents_vsock(self, config: KmsConfig, nsm: Nsm) -> None:
        for address in (UnixAddress(Path("x.sock")), VsockAddress(port=8000, cid=16)):
            with pytest.raises(ConfigError, match="vsock:3:PORT"):
                make_kms_client(replace(config, address=address), nsm)
