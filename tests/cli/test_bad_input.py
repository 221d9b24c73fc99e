"""Whatever a user may give by mistake: a clear error with a stable code, and the program lives on."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from program import Necli

from necli.backends import open_backend
from necli.envelope import CONTEXT, seal
from necli.home import Home
from necli.keypolicy import initial_policy
from necli.settings import DEFAULT_REGION, find_home


@dataclass(frozen=True)
class Given:
    """What a case may start from."""

    photo: bytes
    message: bytes
    folder: Path
    home: Home


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def pixel_bomb(_: Given) -> bytes:
    """20,000 by 20,000 white pixels in 50 KB of PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = (20_000).to_bytes(4, "big")
    rows = zlib.compress((b"\0" + b"\xff" * 2500) * 20_000, 9)
    header = chunk(b"IHDR", side + side + b"\1\0\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def for_another_key(given: Given) -> bytes:
    backend = open_backend("local", given.home, DEFAULT_REGION)
    administrator = backend.kms("administrator")
    policy = initial_policy(
        admin_arn=backend.administrator_arn,
        parent_arn=backend.parent_arn,
        owner_arn=backend.owner_arn,
        account="111122223333",
    )
    arn = administrator.create_key(Policy=policy.to_text())["KeyMetadata"]["Arn"]
    return seal(given.photo, kms=backend.kms("owner"), key_arn=arn, context=CONTEXT).message


def gif(given: Given) -> bytes:
    path = given.folder / "moving.gif"
    Image.new("RGB", (10, 10)).save(path)
    return path.read_bytes()


CASES: dict[str, tuple[Callable[[Given], bytes], str]] = {
    "empty.jpg": (lambda _: b"", "empty_file"),
    "text.jpg": (lambda _: b"not a photo at all\n" * 100, "not_an_image"),
    "picture.gif": (gif, "not_an_image"),
    "truncated.jpg": (lambda given: truncated(given.photo), "image_truncated"),
    "header-only.jpg": (lambda given: given.photo[:20], "image_truncated"),
    "bomb.png": (pixel_bomb, "image_too_large"),
    "huge.jpg": (lambda _: b"\xff\xd8\xff" + bytes(65 << 20), "message_too_large"),
    "other-key": (for_another_key, "wrong_key"),
    "flipped-bit": (lambda given: flipped(given.message), "message_invalid"),
    "truncated-message": (lambda given: truncated(given.message), "message_invalid"),
    "header-of-a-message": (lambda given: given.message[:10], "message_invalid"),
    "more-behind": (lambda given: given.message + b"\0", "message_invalid"),
    "version-1": (lambda given: b"\x01\x80" + given.message[2:], "message_invalid"),
}


@pytest.fixture(scope="module")
def given(running: Necli, photo: Path) -> Given:
    message = running.folder / "good.message"
    running.ok("encrypt", photo, "-o", message)
    home = Home(running.home, find_home(os.environ).cache)
    return Given(photo.read_bytes(), message.read_bytes(), running.folder, home)


@pytest.fixture(scope="module")
def told(running: Necli, given: Given) -> dict[str, dict[str, str]]:
    """The error of each bad file, all of them given to one command together with a good one."""
    for name, (make, _) in CASES.items():
        (running.folder / name).write_bytes(make(given))
    done = running.run("detect", *CASES, "good.message", "--json")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    *bad, good = json.loads(done.stdout)["results"]
    assert good["objects"]
    errors = {result["file"]: result["error"] for result in bad}
    assert all(error["message"] in done.stderr for error in errors.values())
    return errors


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_told_with_its_code(told: dict[str, dict[str, str]], name: str) -> None:
    assert told[name]["code"] == CASES[name][1], told[name]
    assert told[name]["hint"]


@pytest.mark.parametrize("name", ["truncated.jpg", "flipped-bit"])
def test_a_bad_file_alone_ends_with_the_code_for_bad_input(
    running: Necli, told: dict[str, dict[str, str]], name: str
) -> None:
    done = running.run("detect", name)
    assert done.returncode == 3
    assert f"error: {told[name]['message']}\nhint: {told[name]['hint']}\n" in done.stderr.replace(
        f"{name}: ", ""
    )


def test_the_enclave_still_answers_after_all_of_them(running: Necli, photo: Path) -> None:
    assert running.json("detect", photo)["results"][0]["objects"]


@pytest.mark.parametrize(("path", "code"), [("nowhere.jpg", "no_such_file"), (".", "no_such_file")])
def test_what_is_no_file_is_told(running: Necli, path: str, code: str) -> None:
    for command in ("detect", "encrypt"):
        exit_code, error = running.error(command, path)
        assert (exit_code, error["code"]) == (3, code)


def test_a_wrong_encryption_context_is_told_with_the_right_one(running: Necli, photo: Path) -> None:
    exit_code, error = running.error("detect", photo, "--context", "necli:workload=other")
    assert (exit_code, error["code"]) == (3, "wrong_context")
    assert "necli:workload=object-detection" in error["message"]


@pytest.mark.parametrize("pair", ["patient", "=42", "patient=", "aws-crypto-public-key=x"])
def test_a_pair_that_cannot_be_a_context_is_a_usage_error(running: Necli, photo: Path, pair: str) -> None:
    assert running.error("detect", photo, "--context", pair)[0] == 2


def test_encrypting_a_message_again_is_refused(running: Necli, given: Given) -> None:
    exit_code, error = running.error("encrypt", given.folder / "good.message")
    assert exit_code == 3
    assert "encrypted already" in error["message"]


@pytest.mark.parametrize("target", ["/proc/annotated.jpg", "/dev/null/annotated.jpg"])
def test_a_place_that_cannot_be_written_is_an_error_of_this_machine(
    running: Necli, photo: Path, target: str
) -> None:
    assert running.error("detect", photo, "--save", target)[0] == 9
    assert running.error("encrypt", photo, "--output", target)[0] == 9


def test_a_format_that_cannot_be_saved_is_a_usage_error(running: Necli, photo: Path) -> None:
    assert running.error("detect", photo, "--save", "photo.txt")[0] == 2


def test_nothing_built_and_nothing_running_name_what_helps(necli: Necli, photo: Path) -> None:
    exit_code, error = necli.error("detect", photo)
    assert (exit_code, "necli up" in error["hint"]) == (4, True)
    assert necli.error("build")[0] == 4
    necli.ok("setup")
    assert necli.error("policy", "update")[0] == 4
    necli.ok("build")
    exit_code, error = necli.error("detect", photo)
    assert (exit_code, "no enclave necli" in error["message"]) == (4, True)


def test_an_image_that_was_changed_after_the_build_is_refused_until_it_is_built_again(
    necli: Necli, photo: Path
) -> None:
    necli.ok("setup")
    eif = Path(necli.json("build")["path"])
    eif.write_bytes(flipped(eif.read_bytes()))
    exit_code, error = necli.error("policy", "update")
    assert (exit_code, error["code"], error["hint"]) == (6, "eif_changed", "run necli build")
    necli.ok("build")
    assert necli.json("policy", "update")["changed"]


def test_models_that_do_not_exist_are_told(necli: Necli) -> None:
    necli.ok("setup")
    exit_code, error = necli.error("build", "--model", "no-such-model")
    assert (exit_code, error["hint"]) == (3, "necli model list")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"results": []}', b"\xff\xfe"])
def test_a_file_that_is_no_receipt_is_told(necli: Necli, content: bytes) -> None:
    file = necli.folder / "receipt.json"
    file.write_bytes(content)
    exit_code, error = necli.error("receipt", "verify", file, "--pcr0", "ab" * 48)
    assert (exit_code, error["code"]) in ((3, "not_a_receipt"), (3, "no_such_file"))


def test_a_measurement_that_is_none_is_a_usage_error(necli: Necli) -> None:
    file = necli.folder / "receipt.json"
    file.write_bytes(b"{}")
    for pcr0 in ("ab", "x" * 96, ""):
        assert necli.error("receipt", "verify", file, "--pcr0", pcr0)[0] == 2
