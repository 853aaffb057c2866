"""Ports for servers that are killed and started again on the same one.

A port that the kernel chooses may be given to somebody else while its server is dead. These are below those that it
chooses from, so nobody gets one who does not ask for it by number.
"""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _EACH, _WORKERS = 12_000, 2_000, 10


def _numbers() -> itertools.cycle[int]:
    """Each process that runs tests has a part of its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")) % _WORKERS
    start = os.getpid() * 37 % _EACH
    return itertools.cycle(_FIRST + worker * _EACH + (start + n) % _EACH for n in range(_EACH))


_next = _numbers()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    for port in itertools.islice(_next, _EACH):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
