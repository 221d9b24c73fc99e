"""One Docker engine for all tests that need one: it takes a while to start, and its base image to make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.docker_engine import running_engine


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    with running_engine() as host:
        yield host
