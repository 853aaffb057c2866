"""The public surface, and what importing it costs."""

import subprocess
import sys

import conveyor.sdk


def test_the_public_names_are_these():
    assert conveyor.sdk.__all__ == [
        "Aborted",
        "AlreadyExists",
        "ApiError",
        "Applied",
        "AppliedResource",
        "Client",
        "ClientClosed",
        "Completed",
        "ConfigurationError",
        "ConnectionGivenUp",
        "ConveyorError",
        "DEFAULT_ADDRESS",
        "DeadlineExceeded",
        "Driver",
        "FailedPrecondition",
        "ForkedProcess",
        "Internal",
        "InvalidArgument",
        "Job",
        "JobCancelled",
        "JobFailed",
        "NotFound",
        "PermissionDenied",
        "ProcessFailed",
        "ResourceExhausted",
        "RunUpdate",
        "StepOutcome",
        "Submitted",
        "SyncClient",
        "Tls",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "ValueNotRepresentable",
        "Violation",
        "WaitTimeout",
        "from_struct",
        "to_struct",
    ]


def test_each_public_name_is_there():
    for name in conveyor.sdk.__all__:
        assert getattr(conveyor.sdk, name).__class__ is not None
    assert dir(conveyor.sdk) == conveyor.sdk.__all__


def test_other_names_are_not():
    assert not hasattr(conveyor.sdk, "Clinet")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_neither_grpc_nor_nats():
    modules = loaded_by("import conveyor.sdk")
    assert not modules & {"grpc", "nats", "google.protobuf", "asyncio"}


def test_client_and_grpc_driver_need_no_nats():
    assert "nats" not in loaded_by("import conveyor.sdk.client, conveyor.sdk.driver, conveyor.sdk.grpc_transport")
