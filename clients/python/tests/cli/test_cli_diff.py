"""`conveyor diff` on a terminal, and dry runs of what needs other objects of the same files."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from conveyor.v1.pipeline_pb2 import Pipeline, Step

FILE = "kind: Pipeline\nname: release\nsteps: [{id: build, driver: new}]\n"


def everything(terminal: int) -> bytes:
    """What a terminal was shown by a program that has ended."""
    shown = b""
    # After the end a terminal of Linux raises an error, others read nothing.
    with suppress(OSError):
        while part := os.read(terminal, 10_000):
            shown += part
    os.close(terminal)
    return shown


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals of this kind here")
@pytest.mark.parametrize("no_colour", ["", "1"])
def test_colours_on_a_terminal_only(server: Any, start: Callable[..., Any], tmp_path: Path, no_colour: str) -> None:
    server.objects["pipeline", "release"] = Pipeline(name="release", steps=[Step(id="build", driver="old")])
    path = tmp_path / "release.yaml"
    path.write_text(FILE)
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": no_colour}
    terminal, end = os.openpty()
    process = start("diff", "-f", str(path), stdout=end, env=environment)
    assert process.wait(60) == 1
    os.close(end)
    shown = everything(terminal).decode().splitlines()
    coloured = [
        "\x1b[1m--- pipeline/release (stored)\x1b[0m",
        f"\x1b[1m+++ pipeline/release ({path}:1)\x1b[0m",
        "\x1b[36m@@ -2,4 +2,4 @@\x1b[0m",
        " name: release",
        " steps:",
        " - id: build",
        "\x1b[31m-  driver: old\x1b[0m",
        "\x1b[32m+  driver: new\x1b[0m",
    ]
    assert shown == (coloured if not no_colour else [re.sub(r"\x1b\[\d+m", "", line) for line in coloured])


@pytest.mark.parametrize(("field", "code"), [("resource.params.a", 0), ("resource.labels", 1)])
def test_parameters_of_a_pipeline_that_is_not_stored_yet(
    conveyor: Callable[..., Any], server: Any, refusal: Any, tmp_path: Path, field: str, code: int
) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(
        f"{FILE}---\nkind: Resource\nname: shop\ndefinition: app\npipeline: release\nparams: {{level: 5}}\n"
    )
    server.refusals["ApplyResource"] = refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "there is no such thing", ((field, "is unknown"),)
    )
    done = conveyor("apply", "-f", str(path), "--dry-run")
    assert (done.code, "not checked: it needs pipeline/release" in done.out) == (code, not code)
    differs = conveyor("diff", "-f", str(path), "-o", "name")
    assert (differs.code, "resource/app/shop" in differs.out) == (1 + code, not code)
    # Once the pipeline is as in the files, the refusal is meant.
    server.refusals.clear()
    assert conveyor("apply", "-f", str(path)).code == 0
    server.refusals["ApplyResource"] = refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "there is no such thing", ((field, "is unknown"),)
    )
    assert conveyor("apply", "-f", str(path), "--dry-run").code == 1
