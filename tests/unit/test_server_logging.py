"""What the server's log leaves out."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from grpc._cython.cygrpc import ExecuteBatchError
from conveyor.server.logging import configure

configure("info", "json")
for error in (ExecuteBatchError("the client has left"), ValueError("a mistake")):
    try:
        raise error
    except Exception:
        logging.getLogger("grpc._cython.cygrpc").exception("raised by a servicer")
"""


def test_a_client_that_leaves_is_no_error() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stderr
    assert "a mistake" in said
    assert "the client has left" not in said
