"""The bill of materials beside a local image."""

from __future__ import annotations

import json
from pathlib import Path

from necli.sbom import sbom_path
from tests.local.payloads import build, make_spec


def test_it_names_what_was_measured_and_what_that_gave(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "here", needs=("cbor2",))
    built = build(spec, tmp_path / "image.eif")
    document = json.loads(sbom_path(built.path).read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    pcrs = {p["name"]: p["value"] for p in document["metadata"]["component"]["properties"]}
    assert pcrs == {f"necli:PCR{index}": value.hex() for index, value in built.measurements.pcrs().items()}
    model, *packages = document["components"]
    assert (model["type"], model["name"]) == ("machine-learning-model", spec.model_name)
    assert [package["name"] for package in packages] == ["cbor2"]
    assert packages[0]["purl"].startswith("pkg:pypi/cbor2@")


def test_the_same_image_has_the_same_bill(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "here", needs=("cbor2",))
    first, second = (build(spec, tmp_path / name / "image.eif") for name in ("a", "b"))
    assert sbom_path(first.path).read_bytes() == sbom_path(second.path).read_bytes()
