"""`necli model`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Necli

from necli.models import CATALOGUE, DEFAULT_MODEL, InstalledModel

GRAPH = "saved_model.pb"


@pytest.fixture
def necli(tmp_path: Path) -> Necli:
    """With an empty model cache, and a SavedModel of the user's in the folder that it is called in."""
    (tmp_path / "here" / "my-model").mkdir(parents=True)
    (tmp_path / "here" / "my-model" / GRAPH).write_bytes(b"graph")
    return Necli(tmp_path / "state", tmp_path / "here", {"XDG_CACHE_HOME": str(tmp_path / "cache")})


def test_the_list_fits_a_terminal_and_says_what_is_installed(necli: Necli) -> None:
    necli.ok("model", "pull", "my-model")

    lines = necli.ok("model", "list").splitlines()

    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert all(entry.name in rows for entry in CATALOGUE)
    assert rows[DEFAULT_MODEL].split()[1:4] == ["80", "MIT", "npm"]
    assert rows["my-model"].endswith("0.0 MB ")


def test_the_list_for_programs_has_sources_and_digests(necli: Necli) -> None:
    listed = necli.json("model", "list")

    assert listed["installed"] == []
    first = listed["catalogue"][0]
    assert (first["source"], first["licence"], first["classes"]) == ("npm @vladmandic/human@3.3.6", "MIT", 80)
    assert all(len(digest) == 64 for digest in first["sha256"].values())


def test_a_pulled_model_verifies_until_a_file_changes(necli: Necli) -> None:
    pulled = necli.json("model", "pull", "my-model")
    assert necli.json("model", "verify")["verified"] == [pulled]

    (Path(pulled["path"]) / GRAPH).write_bytes(b"other")

    code, error = necli.error("model", "verify", "my-model")
    assert code == 6
    assert error["code"] == "model_changed"
    assert error["message"] == f"the model my-model isn't what was pulled: {GRAPH} was changed"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pull", "nope"), 3, "there is no model and no path 'nope'"),
        (("pull", "--from-file", "none.tgz"), 3, "there is no file none.tgz"),
        (("verify",), 4, "no model is installed"),
        (("verify", "nope"), 4, "the model nope isn't installed"),
    ],
)
def test_what_cannot_be_done_is_told(
    necli: Necli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    exit_code, error = necli.error("model", *arguments)

    assert (exit_code, error["message"]) == (code, message)


def test_a_package_given_by_hand_may_come_from_the_environment(necli: Necli) -> None:
    done = necli.run("model", "pull", env={"NECLI_MODEL_FILE": "by-hand.tgz"})

    assert done.stderr.splitlines()[0] == "error: there is no file by-hand.tgz"


def test_the_embedded_model_is_verified_by_name(embedded_model: InstalledModel, tmp_path: Path) -> None:
    necli = Necli(tmp_path / "state", tmp_path)

    (verified,) = necli.json("model", "verify", DEFAULT_MODEL)["verified"]

    assert verified["digest"] == embedded_model.digest
    assert GRAPH in verified["files"]
