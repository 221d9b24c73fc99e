"""`necli attest`: of a running enclave, and of documents in files, the real one of Nitro included."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from program import Necli

from necli.attestation import STEPS, AttestationDocument
from necli.local.nsm import SimulatedNsm
from necli.local.pki import LocalPki

PCRS = {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 48}
EXPECTED = [f"--pcr{index}={value.hex()}" for index, value in PCRS.items()]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> LocalPki:
    return LocalPki.ensure(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def document(pki: LocalPki, tmp_path: Path) -> Path:
    return stored(pki, tmp_path, PCRS)


def stored(pki: LocalPki, folder: Path, pcrs: dict[int, bytes], *, age: timedelta = timedelta(0)) -> Path:
    nsm = SimulatedNsm(pki, "i-0-test", pcrs, clock=lambda: datetime.now(UTC) - age)
    path = folder / "document.cose"
    path.write_bytes(nsm.attest(nonce=b"\xc0\xff\xee"))
    return path


def test_a_running_enclave_is_who_it_was_built_to_be(running: Necli) -> None:
    path = running.folder / "live.cose"
    value = running.json("attest", "--nonce", "c0ffee", "--user-data", "hello", "--save", path)
    assert value["verified"]
    assert value["simulated"]
    assert value["nonce"] == "c0ffee"
    assert value["steps"] == [step.title for step in STEPS]
    build = running.json("status")["build"]
    assert value["pcrs"]["PCR0"] == build["measurements"]["PCR0"]
    screen = running.ok("attest", "--file", path, "--root", "simulated", "--eif", build["path"],
                        "--nonce", "c0ffee", "--user-data", "hello")  # fmt: skip
    assert screen.count("\u2713") == len(STEPS)
    assert "SIMULATED" in screen
    for changed, code in (
        (("--nonce", "beef"), "nonce_mismatch"),
        (("--user-data", "bye"), "user_data_mismatch"),
    ):
        exit_code, error = running.error(
            "attest", "--file", path, "--root", "simulated", "--eif", build["path"], *changed
        )
        assert (exit_code, error["code"]) == (6, code)


def test_without_expected_pcrs_nothing_is_verified(necli: Necli, document: Path) -> None:
    code, error = necli.error("attest", "--file", document)
    assert code == 2
    assert "proves nothing without the image that is expected" in error["message"]
    assert necli.error("attest", "--file", document, "--pcr1", "ab" * 48)[0] == 2


def test_without_a_build_a_live_document_isnt_even_fetched(necli: Necli) -> None:
    assert necli.error("attest")[0] == 4


def test_a_simulated_root_counts_only_where_it_is_named(necli: Necli, document: Path, pki: LocalPki) -> None:
    code, error = necli.error("attest", "--file", document, *EXPECTED)
    assert (code, error["code"]) == (6, "untrusted_root")
    assert necli.error("attest", "--file", document, "--root", "nitro", *EXPECTED)[0] == 6
    value = necli.json("attest", "--file", document, "--root", pki.simulated_root_pem, *EXPECTED)
    assert value["verified"]
    assert value["simulated"]


def test_the_screen_shows_the_steps_up_to_the_one_that_failed(
    necli: Necli, document: Path, pki: LocalPki
) -> None:
    root = ["--root", pki.simulated_root_pem]
    done = necli.run("attest", "--file", document, *root, "--pcr0", "ab" * 48)
    assert done.returncode == 6
    assert [line[:3] for line in done.stdout.splitlines()] == [
        *(f"\u2713 {n}" for n in range(1, 7)),
        "\u2717 7",
    ]
    assert "error: another image was measured: PCR0" in done.stderr
    assert "! 8 nonce" in necli.ok("attest", "--file", document, *root, *EXPECTED)


def test_debug_zeros_and_damaged_bytes_are_refused(necli: Necli, pki: LocalPki, tmp_path: Path) -> None:
    root = ["--root", pki.simulated_root_pem]
    zeros = stored(pki, tmp_path, dict.fromkeys(range(3), bytes(48)))
    assert necli.error("attest", "--file", zeros, *root, "--pcr0", "00" * 48)[1]["code"] == "debug_mode"
    damaged = stored(pki, tmp_path, PCRS)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    assert necli.error("attest", "--file", damaged, *root, *EXPECTED)[1]["code"] == "bad_signature"
    damaged.write_bytes(b"something else")
    assert necli.error("attest", "--file", damaged, *root, *EXPECTED)[1]["code"] == "malformed"


def test_a_document_of_another_time_verifies_as_of_that_time(
    necli: Necli, pki: LocalPki, tmp_path: Path
) -> None:
    # Of tomorrow: the root was made only now.
    other = stored(pki, tmp_path, PCRS, age=-timedelta(hours=12))
    arguments = ["attest", "--file", other, "--root", pki.simulated_root_pem, *EXPECTED]
    code, error = necli.error(*arguments)
    made_at = AttestationDocument.parse(other.read_bytes()).timestamp.isoformat()
    assert (code, error["code"]) == (6, "expired")
    assert error["hint"].endswith(f"--at {made_at}")
    assert necli.json(*arguments, "--at", made_at)["attested_at"] == made_at
    assert necli.error(*arguments, "--at", "yesterday")[0] == 2


def test_a_real_nitro_document_verifies_under_the_pinned_root(necli: Necli) -> None:
    folder = Path(os.environ.get("NECLI_VECTORS", Path(__file__).parents[3] / "shared"))
    path = folder / "vectors" / "nitro-attestation-2024-08.cose"
    if not path.is_file():
        pytest.skip(f"NOT TESTED against a real document: {path} is missing; set NECLI_VECTORS to its folder")
    pcr0 = AttestationDocument.parse(path.read_bytes()).pcrs[0].hex()
    arguments = ["attest", "--file", path, "--at", "2024-08-07T06:40:00Z"]
    value = necli.json(*arguments, "--pcr0", pcr0)
    assert value["verified"]
    assert not value["simulated"]
    assert "SIMULATED" not in necli.ok(*arguments, "--pcr0", pcr0)
    assert necli.error(*arguments, "--pcr0", "ab" * 48)[1]["code"] == "pcr_mismatch"


def test_a_nonce_is_hexadecimal(necli: Necli, document: Path) -> None:
    assert necli.error("attest", "--file", document, *EXPECTED, "--nonce", "xyz")[0] == 2
