"""What holds for all tests."""

import asyncio
import signal
from collections.abc import Iterator
from types import ModuleType

import grpc
import hypothesis
import pytest
from blockbuster import BlockBuster

import conveyor


def pytest_configure() -> None:
    """Takes Ctrl-C, and lets children take it, also where a shell started this in the background and has it ignored.

    No example of a property has a time limit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says more of the machine than of the code.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


def at(path: str) -> ModuleType:
    """Returns a module that stands for `path`: BlockBuster looks only at the first path of each."""
    module = ModuleType("conveyor")
    module.__path__ = [path]
    return module


PORTIONS = [at(path) for path in conveyor.__path__]


@pytest.fixture(autouse=True)
def event_loop_never_blocks() -> Iterator[None]:
    """Makes a blocking call on an event loop an error, where our code is what calls."""
    blockbuster = BlockBuster(scanned_modules=PORTIONS)
    blockbuster.activate()
    yield
    blockbuster.deactivate()


@pytest.fixture(scope="session", autouse=True)
def grpc_stays_up() -> Iterator[None]:
    """Keeps gRPC's poller thread: it would be joined, on the event loop, whenever the last channel or server went."""
    # It wants a loop, and a test that ran before may have left none.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    grpc.aio.init_grpc_aio()
    yield
    grpc.aio.shutdown_grpc_aio()
    loop.close()
