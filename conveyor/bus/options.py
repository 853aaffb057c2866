"""How to reach the broker, and what the streams should be like."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from nats.aio.client import RawCredentials

from conveyor.bus.errors import BusError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class BusOptions:
    """Where the broker is and who we are to it.

    `servers` are `nats://` or `tls://` addresses; name all nodes of a cluster, they are tried in random order.
    `credentials` is the text of a `.creds` file and `nkey_seed` that of a seed; both need the package `nkeys`.
    `connect_timeout` is in seconds, per server.
    """

    servers: Sequence[str]
    name: str = "conveyor"
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: str = field(default="", repr=False)
    nkey_seed: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    tls_hostname: str = ""
    connect_timeout: float = 2.0

    def check(self) -> None:
        """Raises BusError for what can never work."""
        if not self.servers:
            raise BusError("no address of a NATS server is given")
        if (self.credentials or self.nkey_seed) and importlib.util.find_spec("nkeys") is None:
            raise BusError("NATS credentials need the package nkeys: pip install nkeys")

    def arguments(self) -> dict[str, Any]:
        """What nats-py wants to know of it."""
        given = {
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": RawCredentials(self.credentials) if self.credentials else None,
            "nkeys_seed_str": self.nkey_seed,
            "tls": self.tls,
            "tls_hostname": self.tls_hostname,
        }
        return {key: value for key, value in given.items() if value}


def tls_context(*, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Trusts `ca` (or the system's authorities) and shows `certificate`. Reads files: not for the event loop."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if certificate:
        context.load_cert_chain(str(certificate), str(key) if key else None)
    return context


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What an operator may set of the three streams. Bytes are reserved by the broker; -1 means without bound."""

    replicas: int = 1
    pipeline_max_age: timedelta = timedelta(days=7)
    pipeline_max_bytes: int = GIB
    messages_max_age: timedelta = timedelta(days=7)
    messages_max_bytes: int = GIB
    logs_max_age: timedelta = timedelta(days=30)
    logs_max_bytes: int = 8 * GIB
    duplicate_window: timedelta = timedelta(minutes=2)
    """How long a ticket that is published again is recognized."""
    driver_inactive_threshold: timedelta = timedelta(days=1)
    """How long a driver's consumer outlives its driver when the driver does not say so itself."""
