"""What a server says of itself over HTTP: which calls there are."""

from __future__ import annotations

from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from conveyor.http.methods import methods
from conveyor.http.writer import to_line
from conveyor.version import VERSION

OPENAPI = "/openapi.json"


async def about(request: Request) -> Response:
    """The way to everything else."""
    calls = [method.path for method in methods() if not method.converses]
    return _json(to_line({"name": "conveyor", "version": VERSION, "openapi": OPENAPI, "calls": calls}) + b"\n")


async def openapi(request: Request) -> Response:
    """The document that describes all calls."""
    return _json(_document())


@cache
def _document() -> bytes:
    return resources.files("conveyor.http").joinpath("openapi.json").read_bytes()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
