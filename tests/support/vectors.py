"""What a server of the older protocol and its real Go drivers said to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent.parent / "vectors" / "older-protocol.jsonl"

VECTORS: list[dict[str, Any]] = [json.loads(line) for line in _FILE.read_text().splitlines()]


def vectors(kind: str, subject: str = "") -> list[dict[str, Any]]:
    """Those of one kind whose subject begins like this."""
    return [vector for vector in VECTORS if vector["kind"] == kind and vector["subject"].startswith(subject)]
