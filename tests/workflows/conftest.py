"""A workload on the local target: real services, a real key, and an image once a test asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
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
from necli.workflows.workload import ALIAS, Workload


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    """Local KMS and proxy, for all tests together."""
    home = Home(tmp_path_factory.mktemp("workflows") / "state", find_home(os.environ).cache)
    made = Workload(home, "local", open_backend("local", home, DEFAULT_REGION), Progress())
    set_up(made)
    yield made
    made.backend.stop_services()


@pytest.fixture
def workload(services: Workload) -> Iterator[Workload]:
    """With a key of its own; nothing built."""
    set_up(services)
    yield services
    services.kms("administrator").delete_alias(AliasName=ALIAS)
    shutil.rmtree(services.home.backups, ignore_errors=True)
    services.home.state_file.unlink()


@pytest.fixture(scope="session")
def image(services: Workload, embedded_model: InstalledModel) -> Build:
    set_up(services)
    return build_image(services, BuildOptions(embedded_model.name))


@pytest.fixture
def built(workload: Workload, image: Build, tmp_path: Path) -> Build:
    """The image of that workload, in a file that a test may damage."""
    build = replace(image, path=tmp_path / "built.eif", key_arn=workload.key().arn)
    shutil.copyfile(image.path, build.path)
    workload.update_state(lambda state: state.with_build(build))
    return build
