"""A state folder of its own for necli: an empty one, or one with everything up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import Necli

from necli.settings import find_home


@pytest.fixture
def necli(tmp_path: Path) -> Iterator[Necli]:
    """With nothing set up."""
    folder = tmp_path / "here"
    folder.mkdir()
    program = Necli(tmp_path / "state", folder)
    yield program
    if program.home.exists():
        program.run("down")


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Necli]:
    """With everything up. Tests that change something put it back."""
    folder = tmp_path_factory.mktemp("necli")
    (folder / "here").mkdir()
    program = Necli(folder / "state", folder / "here")
    program.ok("up")
    yield program
    program.run("cleanup", "--yes")


@pytest.fixture(scope="session")
def photo(running: Necli) -> Path:
    """A real photo, of a man at a dinner table."""
    model = running.json("status")["build"]["model_name"]
    return find_home(os.environ).models / model / "sample.jpg"
