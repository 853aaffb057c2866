"""Which addresses a name stands for, so that a server listens on all of them or on none.

gRPC is content with one address of a name: a client that tries another one would reach whoever has the port there.
"""

from __future__ import annotations

import contextlib
import socket

from conveyor.server.config import split_address

_TRIES = 100


def expand(address: str) -> list[str]:
    """The address, with each that its host name stands for, all with one port. Raises OSError. Blocks.

    A port of 0 becomes one that is free on all of them, if there are several.
    """
    host, port = split_address(address)
    hosts = _numeric(host)
    if len(hosts) > 1 and not port:
        port = _free_on_all(hosts)
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]


def _numeric(host: str) -> list[str]:
    found = dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    if host == "localhost" and _is_free("::1", 0):
        # Clients try both, whatever the file of hosts says.
        found["::1"] = None
    return list(found)


def _free_on_all(hosts: list[str]) -> int:
    first, *others = hosts
    for _ in range(_TRIES):
        with _bound(first, 0) as probe:
            port = int(probe.getsockname()[1])
            if all(_is_free(host, port) for host in others):
                return port
    raise OSError("no port is free on all of its addresses")


def _is_free(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), _bound(host, port):
        return True
    return False


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError:
        taken.close()
        raise
    return taken
