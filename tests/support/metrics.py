"""What a server tells Prometheus."""

from __future__ import annotations

import re
import urllib.request

from tests.support.server import ConveyorServer


def scrape(server: ConveyorServer) -> dict[str, float]:
    """All samples by name with labels; the server was started with `--metrics-listen 127.0.0.1:0`."""
    address = re.findall(r"metrics=(\S+)", server.log.read_text())[-1]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
