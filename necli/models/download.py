"""Downloads large files so that a broken connection or a closed laptop costs only what was under way."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

import httpx

from necli.errors import ServiceFailed
from necli.home import host_errors, read_json, write_json_atomically
from necli.progress import Step

MAX_DOWNLOAD: Final = 2 << 30
_ATTEMPTS: Final = 5
_TIMEOUT: Final = httpx.Timeout(30.0)
_BY_HAND: Final = "download it with a browser, then: necli model pull NAME --from-file FILE"


class _BrokenOff(Exception):
    """The transfer failed in a way that another attempt may cure; what has arrived is kept."""


def download(url: str, target: Path, step: Step, *, limit: int = MAX_DOWNLOAD, pause_s: float = 0.5) -> None:
    """Fetch `url` to `target`, unless it is there, and report bytes to `step`.

    What an earlier call began is continued if the server says that the file is still the same (by a strong
    ETag or its date, kept beside it). Redirects are followed, but never from https to http.

    :raises ServiceFailed: refused, too large, or broken off too often; the next call goes on from there.
    """
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    hooks = {"request": [_refuse_downgrade]} if url.startswith("https:") else {}
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT, event_hooks=hooks) as client:
        for attempt in range(_ATTEMPTS):
            try:
                _transfer(client, url, part, step, limit)
                break
            except (_BrokenOff, httpx.TransportError) as exc:
                reason = str(exc) or type(exc).__name__
            except httpx.HTTPError as exc:
                raise ServiceFailed(f"can't download {url}: {exc}", hint=_BY_HAND) from exc
            time.sleep(pause_s * 2**attempt)
        else:
            raise ServiceFailed(
                f"the download of {url} failed {_ATTEMPTS} times, last after {_size(part):,} bytes: {reason}",
                hint="run the same command again: it goes on from there",
            )
    with host_errors(f"can't write {target}"):
        part.rename(target)


def _refuse_downgrade(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        raise ServiceFailed(f"a redirect leads from https to {request.url.scheme}", hint=_BY_HAND)


def _transfer(client: httpx.Client, url: str, part: Path, step: Step, limit: int) -> None:
    with client.stream("GET", url, headers=_headers(part)) as response:
        start = _start(response, part)
        total = start + int(response.headers.get("content-length", 0))
        step.update(start, total if total > start else None)
        _check_size(total, limit, url)
        with host_errors(f"can't write {part}"), open(part, "ab" if start else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                _check_size(file.tell(), limit, url)
                step.update(file.tell())
    _validator_file(part).unlink(missing_ok=True)


def _headers(part: Path) -> dict[str, str]:
    """The bytes as they are stored, and only those that are missing."""
    headers = {"Accept-Encoding": "identity"}
    validator = read_json(_validator_file(part))
    if validator and (size := _size(part)):
        headers |= {"Range": f"bytes={size}-", "If-Range": str(validator)}
    return headers


def _start(response: httpx.Response, part: Path) -> int:
    """Where in the file this answer's bytes begin."""
    status = response.status_code
    if status == 200:
        etag = response.headers.get("etag", "")
        strong = etag if etag.startswith('"') else None
        write_json_atomically(_validator_file(part), strong or response.headers.get("last-modified"))
        return 0
    if status == 206 and re.match(rf"bytes {_size(part)}-", response.headers.get("content-range", "")):
        return _size(part)
    if status in (206, 416):
        part.unlink(missing_ok=True)
        raise _BrokenOff("the server can't continue the transfer")
    host = response.url.host
    if status == 429 or status >= 500:
        raise _BrokenOff(f"{host} answered {status}")
    raise ServiceFailed(f"{host} refuses the download: {status} {response.reason_phrase}", hint=_BY_HAND)


def _check_size(size: int, limit: int, url: str) -> None:
    if size > limit:
        raise ServiceFailed(f"{url} is larger than {limit:,} bytes, and no model is")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")
