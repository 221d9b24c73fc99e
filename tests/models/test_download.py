"""Downloads over a real connection that breaks, lies and refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, hub_server

from necli.errors import HostError, ServiceFailed
from necli.models.download import download
from necli.progress import Step

CONTENT = os.urandom(3_000_000)


class Steps(Step):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []

    def update(self, completed: float, total: float | None = None) -> None:
        self.seen.append((completed, total))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server(CONTENT) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.tar.gz"


def fetch(url: str, target: Path, *, limit: int = 10_000_000) -> Steps:
    steps = Steps()
    download(url, target, steps, limit=limit, pause_s=0)
    return steps


def test_a_file_arrives_whole_and_its_progress_is_told(hub: HubServer, target: Path) -> None:
    steps = fetch(hub.url(), target)

    assert target.read_bytes() == CONTENT
    assert steps.seen[0] == (0, len(CONTENT))
    assert steps.seen[-1][0] == len(CONTENT)
    assert list(target.parent.iterdir()) == [target]


def test_a_redirect_is_followed(hub: HubServer, target: Path) -> None:
    fetch(hub.url("/redirected"), target)

    assert target.read_bytes() == CONTENT


def test_a_redirect_in_circles_ends(hub: HubServer, target: Path) -> None:
    with pytest.raises(ServiceFailed, match="redirect"):
        fetch(hub.url("/circle"), target)


def test_a_broken_connection_is_continued_where_it_broke(hub: HubServer, target: Path) -> None:
    hub.cut_after = [1_000_000, 500_000]

    steps = fetch(hub.url(), target)

    assert target.read_bytes() == CONTENT
    assert hub.requests[0] is None
    assert [int(str(asked).removeprefix("bytes=").removesuffix("-")) for asked in hub.requests[1:]] == [
        1_000_000,
        1_500_000,
    ]
    assert (1_500_000, len(CONTENT)) in steps.seen


def test_a_later_call_continues_an_earlier_one(hub: HubServer, target: Path) -> None:
    hub.cut_after = [400_000] + 4 * [0]
    with pytest.raises(ServiceFailed, match="failed 5 times, last after 400,000 bytes") as caught:
        fetch(hub.url(), target)
    assert caught.value.hint == "run the same command again: it goes on from there"
    assert not target.exists()

    fetch(hub.url(), target)

    assert hub.requests[-1] == "bytes=400000-"
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_begun_anew(hub: HubServer, target: Path) -> None:
    hub.cut_after = [400_000] + 4 * [0]
    with pytest.raises(ServiceFailed):
        fetch(hub.url(), target)
    hub.content, hub.etag = CONTENT[::-1], '"2"'

    fetch(hub.url(), target)

    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_a_strong_etag_or_a_date_nothing_is_continued(
    hub: HubServer, target: Path, etag: str | None
) -> None:
    hub.cut_after, hub.etag = [400_000], etag

    fetch(hub.url(), target)

    assert hub.requests == [None, None]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(hub: HubServer, target: Path) -> None:
    hub.cut_after, hub.ignores_ranges = [400_000], True

    fetch(hub.url(), target)

    assert target.read_bytes() == CONTENT


def test_a_server_that_continues_elsewhere_is_not_believed(hub: HubServer, target: Path) -> None:
    hub.cut_after, hub.lies_about_ranges = [400_000], True

    fetch(hub.url(), target)

    assert hub.requests == [None, "bytes=400000-", None]
    assert target.read_bytes() == CONTENT


def test_more_on_disk_than_there_is_begins_anew(hub: HubServer, target: Path) -> None:
    hub.cut_after = [400_000] + 4 * [0]
    with pytest.raises(ServiceFailed):
        fetch(hub.url(), target)
    hub.content = CONTENT[:1000]

    fetch(hub.url(), target)

    assert target.read_bytes() == CONTENT[:1000]


def test_a_busy_server_is_asked_again(hub: HubServer, target: Path) -> None:
    hub.statuses = [503, 429]

    fetch(hub.url(), target)

    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_told_at_once_with_the_way_round_it(hub: HubServer, target: Path, status: int) -> None:
    hub.statuses = [status]

    with pytest.raises(ServiceFailed, match=rf"127\.0\.0\.1 refuses the download: {status}") as caught:
        fetch(hub.url(), target)

    assert "--from-file" in str(caught.value.hint)
    assert len(hub.requests) == 1


def test_nothing_larger_than_the_limit_is_fetched(hub: HubServer, target: Path) -> None:
    with pytest.raises(ServiceFailed, match="larger than 1,000 bytes"):
        fetch(hub.url(), target, limit=1000)

    assert not target.exists()


def test_a_server_that_isnt_there_is_named(target: Path) -> None:
    with hub_server(b"") as gone:
        url = gone.url()

    with pytest.raises(ServiceFailed, match=r"failed 5 times.*refused"):
        fetch(url, target)


def test_a_file_that_is_there_is_not_fetched_again(hub: HubServer, target: Path) -> None:
    target.write_bytes(b"here")

    fetch(hub.url(), target)

    assert hub.requests == []


def test_a_full_disk_is_an_error_of_this_machine(hub: HubServer, target: Path) -> None:
    target.with_name(f"{target.name}.part").symlink_to("/dev/full")

    with pytest.raises(HostError, match="No space left on device") as caught:
        fetch(hub.url(), target)

    assert "free some space" in str(caught.value.hint)
