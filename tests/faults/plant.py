"""What a deliberate bug is, and how a patch gets into the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conveyor.core import transitions
from conveyor.core.model import Decision


@dataclass(frozen=True, slots=True)
class Plant:
    """One bug."""

    name: str
    breaks: str
    """What it does wrong, in a line."""
    invariants: frozenset[int]
    """Those of the design that are to notice it; any of them will do."""
    patch: Callable[[], None]
    store: str
    """Where it shows: sqlite or etcd."""
    servers: int
    faults: tuple[str, ...]
    """What brings it out: names of faults, or how they begin."""
    arguments: tuple[str, ...]
    """What servers are started with, besides."""
    timed: bool
    """Whether all that JetStream drivers do has a timeout, which would hide it."""
    resources: int
    """How many resources runs are of: the fewer, the more runs wait for each other."""
    rate: float
    """What clients do, in calls per second: the more, the more is under way whenever a fault strikes."""


PLANTED: dict[str, Plant] = {}


def plant(
    breaks: str,
    *invariants: int,
    store: str = "sqlite",
    servers: int = 1,
    faults: tuple[str, ...] = ("kill-server",),
    arguments: tuple[str, ...] = (),
    timed: bool = True,
    resources: int = 4,
    rate: float = 15.0,
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """List a patch under its name."""

    def add(patch: Callable[[], None]) -> Callable[[], None]:
        name = patch.__name__.replace("_", "-")
        notices = frozenset(invariants)
        PLANTED[name] = Plant(
            name, breaks, notices, patch, store, servers, faults, arguments, timed, resources=resources, rate=rate
        )
        return patch

    return add


def on_event(event: type, handler: Callable[..., Decision]) -> None:
    """Have the core handle an event so."""
    transitions._HANDLERS[event] = handler


def put(target: object, name: str, value: object) -> None:
    """What the patches do, past the type checker: they put something else where a function was."""
    assert hasattr(target, name), f"there is no {name} any more"
    setattr(target, name, value)
