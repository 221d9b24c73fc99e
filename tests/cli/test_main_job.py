"""The main job, as a user walks through it: up, encrypt, detect, prove, and what follows."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from program import Necli

from necli.backends import open_backend
from necli.home import Home
from necli.keypolicy import initial_policy
from necli.progress import Progress
from necli.settings import DEFAULT_REGION, find_home
from necli.workflows.workload import Workload


def kms_pid(running: Necli) -> int:
    [pid] = [s["pid"] for s in running.json("status")["services"] if s["name"] == "kms"]
    return int(pid)


def test_up_again_changes_nothing(running: Necli) -> None:
    before = running.json("status")
    assert before["ready"]
    again = running.json("up")
    assert not again["policy_changed"]
    after = running.json("status")
    assert after["enclaves"] == before["enclaves"]
    assert after["key"] == before["key"]


def test_detect_finds_the_man_in_a_photo_it_encrypts_first(running: Necli, photo: Path) -> None:
    answer = running.json("detect", photo)
    assert set(answer) == {"results"}
    [result] = answer["results"]
    assert set(result) == {"file", "objects", "model_digest", "timings_ms", "receipt"}
    assert result["file"] == str(photo)
    [person] = [found for found in result["objects"] if found["name"] == "person"]
    assert person["score"] > 0.5
    top, left, bottom, right = person["box"]
    assert 0 <= top < bottom <= 1
    assert 0 <= left < right <= 1
    assert result["timings_ms"]["total"] > 0


def test_the_air_show_has_five_airplanes(running: Necli, air_show: bytes) -> None:
    file = running.folder / "air-show.jpg"
    file.write_bytes(air_show)
    [result] = running.json("detect", file, "--min-score", "0.5")["results"]
    assert [found["name"] for found in result["objects"]] == ["airplane"] * 5


def test_detect_says_where_the_plaintext_was_seen_and_that_this_is_simulated(
    running: Necli, photo: Path
) -> None:
    screen = running.ok("detect", photo)
    assert "plaintext seen on this machine by necli detect" in screen
    assert "SIMULATED" in screen
    assert "receipt verified" in screen
    message = running.folder / "message"
    running.ok("encrypt", photo, "-o", message)
    done = running.run("detect", message, "--save", "annotated.jpg")
    assert done.returncode == 0
    assert "plaintext" not in done.stdout
    assert "is encrypted: there is no photo here to draw on" in done.stderr


def test_simulated_is_said_on_stderr_when_stdout_is_json(running: Necli, photo: Path) -> None:
    for arguments in (["detect", photo], ["prove"]):
        done = running.run(*arguments, "--json")
        json.loads(done.stdout)
        assert "SIMULATED" in done.stderr


def test_a_message_gives_the_same_objects_as_its_photo(running: Necli, photo: Path) -> None:
    message = Path(running.json("encrypt", photo, "-o", running.folder / "photo.message")["message"])
    assert photo.read_bytes()[:64] not in message.read_bytes()
    [from_photo] = running.json("detect", photo)["results"]
    [from_message] = running.json("detect", message)["results"]
    assert from_message["objects"] == from_photo["objects"]


def test_a_higher_threshold_leaves_objects_out(running: Necli, photo: Path) -> None:
    [result] = running.json("detect", photo, "--min-score", "0.99")["results"]
    assert result["objects"] == []
    assert "0 objects" in running.ok("detect", photo, "--min-score", "1")


def test_the_photo_is_saved_with_the_boxes_drawn(running: Necli, photo: Path) -> None:
    saved = running.folder / "annotated.png"
    screen = running.ok("detect", photo, "--save", saved)
    assert f"annotated photo: {saved}" in screen
    with Image.open(saved) as image, Image.open(photo) as original:
        assert image.size == original.size
        assert ImageChops.difference(image.convert("RGB"), original.convert("RGB")).getbbox()


def test_several_photos_are_saved_into_a_folder(running: Necli, photo: Path) -> None:
    second = running.folder / "second.jpg"
    second.write_bytes(photo.read_bytes())
    running.ok("detect", photo, second, "--save", running.folder / "out")
    names = {path.name for path in (running.folder / "out").iterdir()}
    assert names == {f"{photo.stem}-objects.jpg", "second-objects.jpg"}


def test_an_additional_pair_of_context_is_accepted(running: Necli, photo: Path) -> None:
    assert running.json("detect", photo, "--context", "patient=42")["results"][0]["objects"]


def test_a_bad_file_among_good_ones_costs_only_itself(running: Necli, photo: Path) -> None:
    done = running.run("detect", "nowhere.jpg", photo, "--json")
    first, second = json.loads(done.stdout)["results"]
    assert done.returncode == 3
    assert first["file"] == "nowhere.jpg"
    assert first["error"]["code"] == "no_such_file"
    assert set(first["error"]) == {"code", "message", "hint"}
    assert second["objects"]


def test_prove_passes_with_the_control_first_and_then_every_attack(running: Necli) -> None:
    proof = running.json("prove")
    assert proof["verdict"] == "PASS"
    assert [(case["name"], case["observed"], case["verdict"]) for case in proof["cases"][:3]] == [
        ("enclave Decrypt", "plaintext", "PASS"),
        ("parent Decrypt", "AccessDeniedException", "PASS"),
        ("parent ReEncrypt", "AccessDeniedException", "PASS"),
    ]
    assert len(proof["cases"]) == 22
    assert "PASS: the enclave can decrypt, the parent instance can't" in running.ok("prove")


@pytest.fixture
def workload(running: Necli) -> Iterator[Workload]:
    """The running workload through the library; its policy is put back afterwards."""
    home = Home(running.home, find_home(os.environ).cache)
    made = Workload(home, "local", open_backend("local", home, DEFAULT_REGION), Progress())
    client, arn = made.kms("administrator"), made.key().arn
    policy = client.get_key_policy(KeyId=arn)["Policy"]
    yield made
    client.put_key_policy(KeyId=arn, PolicyName="default", Policy=policy)


def allow_the_parent(workload: Workload) -> None:
    """The mistake that prove is there to find: a policy that lets the parent decrypt by itself."""
    client, arn = workload.kms("administrator"), workload.key().arn
    policy = json.loads(client.get_key_policy(KeyId=arn)["Policy"])
    kept = [s for s in policy["Statement"] if not s["Sid"].startswith("DenyDecrypt")]
    kept.append({"Sid": "Mistake", "Effect": "Allow", "Principal": {"AWS": workload.backend.parent_arn},
                 "Action": ["kms:Decrypt", "kms:ReEncrypt*"], "Resource": "*"})  # fmt: skip
    client.put_key_policy(KeyId=arn, PolicyName="default", Policy=json.dumps({**policy, "Statement": kept}))


def test_prove_fails_when_the_parent_can_decrypt(running: Necli, workload: Workload) -> None:
    allow_the_parent(workload)
    done = running.run("prove", "--json")
    proof = json.loads(done.stdout)
    assert (done.returncode, proof["verdict"]) == (10, "FAIL")
    failed = {case["name"] for case in proof["cases"] if case["verdict"] == "FAIL"}
    assert failed == {"parent Decrypt", "parent ReEncrypt", "wrong PCRs", "debug PCRs"}


def test_a_dead_kms_proves_nothing_and_up_revives_it(running: Necli, photo: Path) -> None:
    key = running.json("status")["key"]
    os.kill(kms_pid(running), signal.SIGKILL)
    done = running.run("prove", "--json")
    proof = json.loads(done.stdout)
    assert (done.returncode, proof["verdict"]) == (11, "INCONCLUSIVE")
    assert "PASS" not in {case["verdict"] for case in proof["cases"]}
    assert any(
        finding["check"] == "services" and finding["status"] == "failed"
        for finding in json.loads(running.run("doctor", "--json").stdout)["findings"]
    )
    running.ok("doctor", "--fix")
    assert running.json("status")["key"] == key
    assert running.json("prove")["verdict"] == "PASS"


@pytest.mark.parametrize("victim", ["kms", "proxy", "hypervisor", "payload"])
def test_whatever_is_killed_is_back_when_detect_is_asked_again(
    running: Necli, photo: Path, victim: str
) -> None:
    before = running.json("status")
    [enclave] = running.json("enclave", "list")
    pids = {service["name"]: service["pid"] for service in before["services"]}
    pids["payload"] = enclave["ProcessID"]
    pids["hypervisor"] = json.loads((running.home / "enclaves" / "necli" / "hypervisor.pid").read_text())[
        "pid"
    ]
    os.kill(pids[victim], signal.SIGKILL)
    assert running.json("detect", photo)["results"][0]["objects"]
    after = running.json("status")
    assert after["ready"]
    assert after["key"] == before["key"]


def test_a_killed_kms_is_back_for_the_data_owner_and_the_policy(running: Necli, photo: Path) -> None:
    for command in (["encrypt", photo, "-o", running.folder / "again.message"], ["policy", "update"]):
        os.kill(kms_pid(running), signal.SIGKILL)
        running.ok(*command)


def test_an_enclave_that_is_not_there_proves_nothing(running: Necli) -> None:
    done = running.run("prove", "--enclave", "other", "--json")
    assert done.returncode == 11
    assert json.loads(done.stdout)["cases"][0]["verdict"] == "INCONCLUSIVE"


def test_a_policy_that_is_not_updated_names_the_command_and_that_heals(
    running: Necli, workload: Workload, photo: Path
) -> None:
    backend = workload.backend
    client, arn = workload.kms("administrator"), workload.key().arn
    unbound = initial_policy(
        admin_arn=backend.administrator_arn,
        parent_arn=backend.parent_arn,
        owner_arn=backend.owner_arn,
        account="111122223333",
    )
    client.put_key_policy(KeyId=arn, PolicyName="default", Policy=unbound.to_text())
    code, error = running.error("detect", photo)
    assert (code, error["code"], error["hint"]) == (5, "policy_not_updated", "run necli policy update")
    assert running.json("policy", "plan")["changed"]
    screen = running.ok("policy", "update")
    assert '-          "kms:RecipientAttestation:PCR0": "necli-no-measurement-yet"' in screen
    assert "the policy before it: " in screen
    assert running.json("detect", photo)["results"][0]["objects"]
    assert not running.json("policy", "update")["changed"]


def test_a_receipt_verifies_later_and_without_the_enclave(running: Necli, photo: Path) -> None:
    message = running.folder / "receipt.message"
    running.ok("encrypt", photo, "-o", message)
    saved = running.folder / "answer.json"
    saved.write_text(running.ok("detect", message, "--json"))
    build = running.json("status")["build"]
    [receipt] = running.json("receipt", "verify", saved, "--eif", build["path"], "--message", message)[
        "receipts"
    ]
    assert receipt["verified"]
    pcrs = [f"--pcr{index}={build['measurements'][f'PCR{index}']}" for index in range(3)]
    assert "as the expected image found them" in running.ok("receipt", "verify", saved, *pcrs)

    assert running.run("receipt", "verify", saved).returncode == 2
    assert running.error("receipt", "verify", saved, "--pcr0", "ab" * 48)[0] == 6
    assert running.error("receipt", "verify", saved, *pcrs, "--message", photo)[0] == 6
    forged = json.loads(saved.read_text())
    forged["results"][0]["receipt"]["answer"]["objects"][0]["name"] = "banana"
    saved.write_text(json.dumps(forged))
    code, error = running.error("receipt", "verify", saved, *pcrs)
    assert (code, error["code"]) == (6, "user_data_mismatch")


def test_status_and_doctor_agree_that_all_is_well(running: Necli) -> None:
    assert running.json("status")["ready"]
    findings = running.json("doctor")["findings"]
    assert {finding["check"] for finding in findings} >= {"KMS", "key policy", "image", "enclave", "clock"}
    assert not [finding for finding in findings if finding["status"] == "failed"]
    assert "bound to this image" in running.ok("status")


def test_steps_are_lines_on_stderr_and_results_stand_on_stdout(running: Necli) -> None:
    done = running.run("up")
    assert "✓ Key policy" in done.stderr
    assert "✓" not in done.stdout


def test_cleanup_asks_before_it_destroys_the_key(necli: Necli) -> None:
    necli.ok("setup")
    key = necli.json("status")["key"]["arn"]
    code, error = necli.error("cleanup")
    assert (code, error["hint"]) == (2, "add --yes")
    screen = necli.terminal("cleanup")
    screen.expect_exact("This destroys the key")
    screen.expect_exact("Go on? [y/N]")
    screen.sendline("n")
    screen.read()
    screen.close()
    assert screen.exitstatus == 130
    assert necli.json("status")["key"]["arn"] == key
    stranger = necli.home / "not-ours.txt"
    stranger.write_text("keep me")
    screen = necli.terminal("cleanup")
    screen.expect_exact("Go on? [y/N]")
    screen.sendline("y")
    screen.read()
    screen.close()
    assert screen.exitstatus == 0
    # The lock files stay: removing one that another necli waits for would let two in.
    assert {path.name for path in necli.home.iterdir()} == {"lock", "services.lock", "not-ours.txt"}
    assert necli.json("status")["key"] is None


def test_down_and_up_again_keep_key_and_data(necli: Necli) -> None:
    necli.ok("setup")
    key = necli.json("status")["key"]
    necli.ok("down")
    assert not any(service["running"] for service in necli.json("status")["services"])
    necli.ok("setup")
    assert necli.json("status")["key"] == key


def test_a_port_that_somebody_took_meanwhile_is_replaced(necli: Necli) -> None:
    necli.ok("setup")
    [port] = [
        int(s["address"].rpartition(":")[2]) for s in necli.json("status")["services"] if s["name"] == "kms"
    ]
    necli.ok("down")
    with socket.create_server(("127.0.0.1", port)):
        necli.ok("setup")
    assert all(service["running"] for service in necli.json("status")["services"])


def test_a_stale_pid_file_is_no_obstacle(necli: Necli) -> None:
    necli.ok("setup")
    pid_file = necli.home / "kms" / "kms.pid"
    record = json.loads(pid_file.read_text())
    necli.ok("down")
    pid_file.write_text(json.dumps({**record, "pid": 1}))
    necli.ok("setup")
    assert all(service["running"] for service in necli.json("status")["services"])
