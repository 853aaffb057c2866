"""The typed clients of Conveyor, for asyncio and without, and the SDK for its drivers.

    from conveyor.sdk import Client, Driver, Job, SyncClient

Names are loaded when they are first used: neither gRPC nor NATS is imported by `import conveyor.sdk` itself.
"""

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

# gRPC reads these when it is first imported. Its support for fork hangs or aborts a process that forks while a stream
# is open (seen with 1.81); without it a forked child just must not use gRPC. Its log lines say nothing that our
# exceptions and records don't.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_shadow = getattr(sys.modules["conveyor"], "__file__", None)
if _shadow is not None:
    warnings.warn(
        f"an older package named conveyor shadows this one ({_shadow}): pip uninstall conveyor, "
        "then install conveyor-client again",
        RuntimeWarning,
        stacklevel=2,
    )

if TYPE_CHECKING:
    from conveyor.sdk.answers import Applied as Applied
    from conveyor.sdk.answers import AppliedResource as AppliedResource
    from conveyor.sdk.answers import RunUpdate as RunUpdate
    from conveyor.sdk.answers import Submitted as Submitted
    from conveyor.sdk.client import Client as Client
    from conveyor.sdk.config import DEFAULT_ADDRESS as DEFAULT_ADDRESS
    from conveyor.sdk.config import Tls as Tls
    from conveyor.sdk.driver import Driver as Driver
    from conveyor.sdk.errors import Aborted as Aborted
    from conveyor.sdk.errors import AlreadyExists as AlreadyExists
    from conveyor.sdk.errors import ApiError as ApiError
    from conveyor.sdk.errors import ClientClosed as ClientClosed
    from conveyor.sdk.errors import ConfigurationError as ConfigurationError
    from conveyor.sdk.errors import ConnectionGivenUp as ConnectionGivenUp
    from conveyor.sdk.errors import ConveyorError as ConveyorError
    from conveyor.sdk.errors import DeadlineExceeded as DeadlineExceeded
    from conveyor.sdk.errors import FailedPrecondition as FailedPrecondition
    from conveyor.sdk.errors import ForkedProcess as ForkedProcess
    from conveyor.sdk.errors import Internal as Internal
    from conveyor.sdk.errors import InvalidArgument as InvalidArgument
    from conveyor.sdk.errors import JobCancelled as JobCancelled
    from conveyor.sdk.errors import JobFailed as JobFailed
    from conveyor.sdk.errors import NotFound as NotFound
    from conveyor.sdk.errors import PermissionDenied as PermissionDenied
    from conveyor.sdk.errors import ProcessFailed as ProcessFailed
    from conveyor.sdk.errors import ResourceExhausted as ResourceExhausted
    from conveyor.sdk.errors import Unauthenticated as Unauthenticated
    from conveyor.sdk.errors import Unavailable as Unavailable
    from conveyor.sdk.errors import Unimplemented as Unimplemented
    from conveyor.sdk.errors import ValueNotRepresentable as ValueNotRepresentable
    from conveyor.sdk.errors import Violation as Violation
    from conveyor.sdk.errors import WaitTimeout as WaitTimeout
    from conveyor.sdk.job import Job as Job
    from conveyor.sdk.job import StepOutcome as StepOutcome
    from conveyor.sdk.process import Completed as Completed
    from conveyor.sdk.sync.client import SyncClient as SyncClient
    from conveyor.sdk.values import from_struct as from_struct
    from conveyor.sdk.values import to_struct as to_struct

_HOMES = {
    "answers": ("Applied", "AppliedResource", "RunUpdate", "Submitted"),
    "client": ("Client",),
    "config": ("DEFAULT_ADDRESS", "Tls"),
    "driver": ("Driver",),
    "errors": (
        "Aborted",
        "AlreadyExists",
        "ApiError",
        "ClientClosed",
        "ConfigurationError",
        "ConnectionGivenUp",
        "ConveyorError",
        "DeadlineExceeded",
        "FailedPrecondition",
        "ForkedProcess",
        "Internal",
        "InvalidArgument",
        "JobCancelled",
        "JobFailed",
        "NotFound",
        "PermissionDenied",
        "ProcessFailed",
        "ResourceExhausted",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "ValueNotRepresentable",
        "Violation",
        "WaitTimeout",
    ),
    "job": ("Job", "StepOutcome"),
    "process": ("Completed",),
    "sync.client": ("SyncClient",),
    "values": ("from_struct", "to_struct"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
