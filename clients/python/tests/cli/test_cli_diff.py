"""`conveyor diff` on a terminal."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conveyor.v1.pipeline_pb2 import Pipeline, Step

FILE = "kind: Pipeline\nname: release\nsteps: [{id: build, driver: new}]\n"


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
    shown = os.read(terminal, 10_000).decode().splitlines()
    os.close(terminal)
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
