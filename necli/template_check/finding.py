"""What a rule finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class TemplateFinding:
    rule: str
    """Its stable name, in words: `imdsv1`."""
    resource: str | None
    """The resource's logical id; None for the template as a whole."""
    severity: Severity
    message: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
