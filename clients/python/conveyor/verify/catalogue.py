"""All checks by transport, in the order in which they run."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conveyor.verify import checks, grpc_checks
from conveyor.verify.grpc_site import GrpcSite
from conveyor.verify.rig import Rig
from conveyor.verify.site import Site


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the protocol asks. With `prepare` it gets a process of its own, and the server is told before."""

    name: str
    run: Callable[[Rig[Any]], Awaitable[str]]
    prepare: Callable[[Any], None] | None = None
    coming: str = "the driver to come"
    """What is expected of its start."""


def _as_usual(site: Site) -> None:
    """Only a new process is wanted."""


_GRPC = (
    Check("registers", grpc_checks.registers, _as_usual),
    Check("heartbeats", grpc_checks.heartbeats),
    Check("slots", grpc_checks.slots),
    Check("succeeds", checks.succeeds),
    Check("fails", checks.fails),
    Check("data", checks.data),
    Check("token", checks.token),
    Check("cancels", checks.cancels),
    Check("logs-first", checks.logs_first),
    Check("long-line", checks.long_line),
    Check("unknown-field", grpc_checks.unknown_field),
    Check("unknown-message", grpc_checks.unknown_message),
    Check("reattaches", grpc_checks.reattaches),
    Check("once", grpc_checks.once),
    Check(
        "slow-server",
        grpc_checks.slow_server,
        grpc_checks.welcome_late,
        coming=f"the driver to wait for a Welcome that comes after {grpc_checks.SLOW_S:g} s",
    ),
    Check("drains", grpc_checks.drains),
)
NAMES = tuple(check.name for check in _GRPC)
TRANSPORTS = ("grpc", "jetstream")


def of(transport: str, namespace: str, driver: str, folder: Path) -> tuple[Sequence[Check], Site]:
    """The checks of a transport, and the server that they need, which keeps its files in `folder`."""
    if transport == "grpc":
        return _GRPC, GrpcSite(namespace)
    # It needs a library that gRPC drivers do without.
    from conveyor.verify import jetstream_checks
    from conveyor.verify.jetstream_site import JetStreamSite

    own = {name: getattr(jetstream_checks, name.replace("-", "_"), None) for name in NAMES}
    jetstream = [Check(each.name, own[each.name] or each.run, each.prepare and _as_usual) for each in _GRPC]
    return jetstream, JetStreamSite(namespace, driver, folder)
