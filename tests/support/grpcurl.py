"""grpcurl, the independent client of people without an SDK."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / ".tools" / "bin"


def binary() -> str:
    """The program's path. Without it, the test is skipped here and fails in CI."""
    found = shutil.which("grpcurl", path=str(TOOLS)) or shutil.which("grpcurl")
    if found is None:
        message = "no grpcurl is here: run scripts/fetch_grpcurl.py"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def call(address: str, method: str, request: dict[str, Any], *flags: str) -> dict[str, Any]:
    """One call; its answer, the first one of a stream."""
    done = grpcurl("-plaintext", *flags, "-d", json.dumps(request), address, method)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any]
    answer, _ = json.JSONDecoder().raw_decode(done.stdout or "{}")
    return answer


def refused(address: str, method: str, request: dict[str, Any]) -> str:
    """One call that must fail; what it says."""
    done = grpcurl("-plaintext", "-d", json.dumps(request), address, method)
    assert done.returncode != 0, done.stdout
    return done.stderr
