"""The metadata section of an EIF: JSON that says where an image comes from. It isn't measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from necli.eif.layout import MAX_METADATA_BYTES, InvalidEif

_BUILD_FIELDS = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")


def image_metadata(
    *,
    name: str,
    version: str,
    build_time: str,
    build_tool_version: str,
    operating_system: str = "Unknown",
    kernel_version: str = "Unknown",
    docker_info: Mapping[str, Any] | None = None,
    custom: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Metadata of an image that necli builds, in the form that nitro-cli reads; `build_time` in RFC 3339."""
    return {
        "ImageName": name,
        "ImageVersion": version,
        "BuildMetadata": {
            "BuildTime": build_time,
            "BuildTool": "necli",
            "BuildToolVersion": build_tool_version,
            "OperatingSystem": operating_system,
            "KernelVersion": kernel_version,
        },
        "DockerInfo": dict(docker_info or {}),
        "CustomMetadata": dict(custom or {}),
    }


def pack_metadata(metadata: Mapping[str, Any]) -> bytes:
    """The section's bytes.

    :raises InvalidEif: it lacks a field that nitro-cli wants.
    """
    raw = json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()
    parse_metadata(raw)
    return raw


def parse_metadata(raw: bytes) -> dict[str, Any]:
    """Read the section's bytes.

    :raises InvalidEif: not JSON, or a field is missing or of the wrong type.
    """
    if len(raw) > MAX_METADATA_BYTES:
        raise InvalidEif(f"its metadata has {len(raw)} bytes; {MAX_METADATA_BYTES} are allowed")
    try:
        metadata = json.loads(raw.decode(), parse_constant=_refuse_constant)
        json.dumps(metadata, ensure_ascii=False).encode()  # a lone surrogate could never be printed
    except (ValueError, RecursionError) as exc:
        raise InvalidEif(f"its metadata isn't valid JSON: {exc}") from exc
    _require(metadata, "metadata", {"ImageName": str, "ImageVersion": str, "BuildMetadata": dict})
    _require(metadata["BuildMetadata"], "BuildMetadata", dict.fromkeys(_BUILD_FIELDS, str))
    if "DockerInfo" not in metadata:
        raise InvalidEif("its metadata has no DockerInfo")
    return dict(metadata)


def _require(value: Any, name: str, fields: Mapping[str, type]) -> None:
    if not isinstance(value, dict):
        raise InvalidEif(f"its {name} isn't a JSON object")
    for field, kind in fields.items():
        if not isinstance(value.get(field), kind):
            raise InvalidEif(f"its {name} has no valid {field}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't JSON")
