"""The threat model names tests; they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "threat-model.md").read_text())
    assert len(named) >= 20
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert not missing
