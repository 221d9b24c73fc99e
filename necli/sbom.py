"""The bill of materials of an image, in CycloneDX 1.6: what was measured into it, with the PCRs it gave."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from necli.measurements import Measurements


def sbom_path(image: Path) -> Path:
    return image.with_suffix(".cdx.json")


def sbom(
    name: str,
    version: str,
    measurements: Measurements,
    *,
    model: dict[str, Any],
    packages: Iterable[tuple[str, str]],
) -> str:
    """The text; the same image gives the same, so it has neither time nor serial number."""
    pcrs = [{"name": f"necli:PCR{index}", "value": v.hex()} for index, v in measurements.pcrs().items()]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": name, "version": version, "properties": pcrs}
        },
        "components": [model, *(_package(*package) for package in sorted(packages))],
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def model_component(name: str, sha384: str) -> dict[str, Any]:
    """`sha384` is of the model's list of files, as the payload's configuration names it."""
    return {
        "type": "machine-learning-model",
        "name": name,
        "bom-ref": "model",
        "properties": [{"name": "necli:digest", "value": sha384}],
    }


def _package(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
