"""gRPC does not live on in the child of a fork: a call there would hang, with its deadline and all."""

import os

from conveyor.sdk.errors import ForkedProcess

_used_in: int | None = None
"""The process that called a server; its children inherit this."""


def in_child() -> bool:
    """Whether a process from which this one was forked called a server: of that, nothing may be touched here."""
    return _used_in is not None and _used_in != os.getpid()


def check() -> None:
    """Say that this process is about to call a server. Raises ForkedProcess in the child of one that has."""
    global _used_in
    if _used_in is None:
        _used_in = os.getpid()
    elif in_child():
        raise ForkedProcess(
            f"process {os.getpid()} was forked from process {_used_in}, which had called Conveyor already, and gRPC "
            "does not live on in a fork: make the first call after forking, or start processes with multiprocessing's "
            "'spawn' or 'forkserver'"
        )
