"""The third-party distributions that a local enclave runs with: which they are, their measure, their links.

They are too large for a local image (TensorFlow has 1.5 GB), so the image holds their names, versions and
RECORD digests, and boots only where exactly these are installed. What each installed file holds isn't
hashed again at boot.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Self

from necli.errors import HostError, InputError

_INSTALL_HINT = "pip install 'necli[local]'"
_WRITTEN_BY_THE_INSTALLER = frozenset({"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"})


@dataclass(frozen=True, order=True)
class MeasuredDistribution:
    """A distribution as a local image names it."""

    name: str
    version: str
    record_sha256: str
    """Over the lines of RECORD that every installation has, wherever it stands."""

    @classmethod
    def of(cls, distribution: Distribution) -> Self:
        lines = "".join(f"{path},{digest},{size}\n" for path, digest, size in _measured(distribution))
        name = _canonical(distribution.metadata["Name"])
        return cls(name, distribution.version, hashlib.sha256(lines.encode()).hexdigest())

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """:raises InputError: not what `to_json` makes."""
        try:
            return cls(str(value["name"]), str(value["version"]), str(value["record_sha256"]))
        except (KeyError, TypeError) as exc:
            raise InputError("the image's list of distributions is damaged", hint="necli build") from exc

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def required_by(pyproject: Path) -> list[Distribution]:
    """What the project needs, and what that needs in turn, as installed here; sorted by name.

    :raises HostError: something isn't installed.
    """
    from packaging.requirements import Requirement

    installed = installed_distributions()
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = _canonical(requirement.name)
        found[name] = _installed(installed, name)
        for extra in {"", *requirement.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            needs = [Requirement(text) for text in found[name].requires or ()]
            waiting += [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]
    return [found[name] for name in sorted(found)]


def installed_distributions() -> dict[str, Distribution]:
    """By canonical name; of two with the same name, the one that an import finds."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(_canonical(name), distribution)
    return found


def find_drift(expected: Iterable[MeasuredDistribution]) -> list[str]:
    """How what is installed differs from what was measured, one line a distribution."""
    installed = installed_distributions()
    return [line for wanted in expected for line in _differences(wanted, installed.get(wanted.name))]


def link_site(names: Iterable[str], site: Path) -> None:
    """Fill the new folder `site` with links to the files of these distributions, and to nothing else.

    A package is linked as a whole; a namespace, which others may share, file by file. Links keep the
    compiled .pyc files in use.

    :raises HostError: one isn't installed.
    """
    site.mkdir()
    installed = installed_distributions()
    paths = {name: [row[0] for row in _inside(_installed(installed, name))] for name in names}
    # Of all of them together: one distribution may have files in another's package.
    packages = {
        path.removesuffix("/__init__.py")
        for recorded in paths.values()
        for path in recorded
        if path.endswith("/__init__.py")
    }
    for name, recorded in paths.items():
        for target in {_outermost(path, packages) for path in recorded}:
            source, link = Path(str(installed[name].locate_file(target))), site / target
            if source.exists() and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source)


def _outermost(path: str, packages: set[str]) -> str:
    """The package that holds `path`, or the file itself."""
    end = path.find("/")
    while end >= 0:
        if path[:end] in packages:
            return path[:end]
        end = path.find("/", end + 1)
    return path


def _measured(distribution: Distribution) -> list[list[str]]:
    return sorted(
        row
        for row in _inside(distribution)
        if row[1] and row[0].rpartition("/")[2] not in _WRITTEN_BY_THE_INSTALLER
    )


def _inside(distribution: Distribution) -> Iterator[list[str]]:
    """The rows of RECORD, without what was installed outside of site-packages, like console scripts."""
    record = distribution.read_text("RECORD")
    if record is None:
        raise HostError(
            f"{distribution.metadata['Name']} was installed without a RECORD, so it can't be measured",
            hint="use a virtual environment made with venv and pip",
        )
    for row in csv.reader(record.splitlines()):
        if len(row) == 3 and not row[0].startswith(("/", "..")):
            yield row


def _differences(wanted: MeasuredDistribution, distribution: Distribution | None) -> Iterator[str]:
    if distribution is None:
        yield f"{wanted.name} {wanted.version} isn't installed"
    elif distribution.version != wanted.version:
        yield f"{wanted.name} is {distribution.version}, not {wanted.version}"
    elif MeasuredDistribution.of(distribution) != wanted:
        yield f"{wanted.name} {wanted.version} has other files"


def _installed(installed: dict[str, Distribution], name: str) -> Distribution:
    if name not in installed:
        raise HostError(f"the enclave's runtime needs {name}, which isn't installed", hint=_INSTALL_HINT)
    return installed[name]


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)
