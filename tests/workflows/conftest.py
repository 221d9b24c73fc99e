"""A workload on the local target: real services, a real key, and an image once a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from necli.backends import open_backend
from necli.home import Home
from necli.models import InstalledModel
from necli.progress import Progress
from necli.settings import DEFAULT_REGION, find_home
from necli.state import Build
from necli.workflows.build import BuildOptions, build_image
from necli.workflows.setup import set_up
from necli.workflows.workload import Workload


@pytest.fixture
def workload(tmp_path: Path) -> Iterator[Workload]:
    """Set up, with a key; nothing built."""
    home = Home(tmp_path / "state", find_home(os.environ).cache)
    made = Workload(home, "local", open_backend("local", home, DEFAULT_REGION), Progress())
    set_up(made)
    yield made
    made.backend.stop_services()


@pytest.fixture
def built(workload: Workload, embedded_model: InstalledModel) -> Build:
    """The image of that workload."""
    return build_image(workload, BuildOptions(embedded_model.name))
