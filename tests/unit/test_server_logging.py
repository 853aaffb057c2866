"""What the server's log leaves out."""

from __future__ import annotations

import json
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
EVENT_LOOP = """
import asyncio
import uvloop
from conveyor.server.logging import configure

configure("info", "json")

async def complain():
    asyncio.get_running_loop().call_exception_handler({"message": "something is odd"})

uvloop.run(complain())
"""


def said_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr


def test_a_client_that_leaves_is_no_error() -> None:
    said = said_by(PROGRAM)
    assert "a mistake" in said
    assert "the client has left" not in said


def test_what_the_event_loop_says_is_logged_without_an_exception_too() -> None:
    [line] = said_by(EVENT_LOOP).splitlines()
    assert json.loads(line)["event"] == "something is odd"
