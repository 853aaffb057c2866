"""What the tests of the command line share: a server of a few dictionaries, and ways to run a command.

Without the extra `cli` there is nothing to test here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from conveyor.v1 import (
    driver_service_pb2,
    driver_service_pb2_grpc,
    log_service_pb2,
    log_service_pb2_grpc,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
    resource_definition_service_pb2,
    resource_definition_service_pb2_grpc,
    resource_service_pb2,
    resource_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
)
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.driver_pb2 import Driver
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.run_pb2 import Run, RunChange, RunChanges, RunSnapshot, RunState, SnapshotEnd, StepRun, StepState
from conveyor.v1.server_pb2 import ServerInfo

if not find_spec("click") or not find_spec("ruamel"):
    collect_ignore_glob = ["test_cli_*.py"]

RUN_ID = "0193a5b0-0000-7000-8000-000000000001"


@dataclass
class Refusal:
    """How the server refuses a call."""

    code: grpc.StatusCode
    reason: str
    message: str
    violations: tuple[tuple[str, str], ...] = ()


class FakeServer(
    resource_definition_service_pb2_grpc.ResourceDefinitionServiceServicer,
    pipeline_service_pb2_grpc.PipelineServiceServicer,
    resource_service_pb2_grpc.ResourceServiceServicer,
    schedule_service_pb2_grpc.ScheduleServiceServicer,
    run_service_pb2_grpc.RunServiceServicer,
    log_service_pb2_grpc.LogServiceServicer,
    driver_service_pb2_grpc.DriverServiceServicer,
    server_service_pb2_grpc.ServerServiceServicer,
):
    """As much of a server as the command line can be tried with. Tests fill and read its dictionaries."""

    def __init__(self) -> None:
        self.address = ""
        self.objects: dict[tuple[str, ...], Any] = {}
        self.runs: dict[str, Run] = {}
        self.changes: SimpleQueue[Run | None] = SimpleQueue()
        """What watches send: runs as they are after a change. None ends a log that is followed."""
        self.lines: list[LogLine] = []
        self.drivers: list[Driver] = []
        self.locks: list[run_service_pb2.HeldLock] = []
        self.refusals: dict[str, Refusal] = {}
        """By the request's name without `Request`, and the object's name when only that is refused."""
        self.requests: list[Any] = []

    def _take(self, request: Any, context: grpc.ServicerContext, name: str = "") -> None:
        self.requests.append(request)
        method = request.DESCRIPTOR.name.removesuffix("Request")
        refusal = self.refusals.get(f"{method} {name}") or self.refusals.get(method)
        if refusal is not None:
            _refuse(context, refusal)

    def _one(self, kind: str, key: tuple[str, ...], context: grpc.ServicerContext) -> Any:
        found = self.objects.get((kind, *key))
        if found is None:
            _not_found(context, f"there is no {kind} {'/'.join(key)}")
        return found

    def _apply(self, kind: str, key: tuple[str, ...], new: Any, store: bool) -> tuple[Any, ApplyOutcome.ValueType]:
        old = self.objects.get((kind, *key))
        if old is None:
            new.generation, outcome = 1, ApplyOutcome.APPLY_OUTCOME_CREATED
        else:
            new.generation = old.generation
            same = new == old
            new.generation += not same
            outcome = ApplyOutcome.APPLY_OUTCOME_UNCHANGED if same else ApplyOutcome.APPLY_OUTCOME_CHANGED
        if store:
            self.objects[kind, *key] = new
        return new, outcome

    def _listed(self, kind: str) -> list[Any]:
        return [value for key, value in sorted(self.objects.items()) if key[0] == kind]

    def _deleted(self, kind: str, key: tuple[str, ...], context: grpc.ServicerContext) -> Any:
        found = self._one(kind, key, context)
        del self.objects[kind, *key]
        return found

    # Definitions and pipelines.

    def ApplyResourceDefinition(self, request: Any, context: Any) -> Any:  # noqa: N802
        it = request.resource_definition
        self._take(request, context, it.name)
        new, outcome = self._apply("definition", (it.name,), it, not request.validate_only)
        return resource_definition_service_pb2.ApplyResourceDefinitionResponse(resource_definition=new, outcome=outcome)

    def GetResourceDefinition(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._one("definition", (request.name,), context)
        return resource_definition_service_pb2.GetResourceDefinitionResponse(resource_definition=found)

    def ListResourceDefinitions(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._listed("definition")
        return resource_definition_service_pb2.ListResourceDefinitionsResponse(resource_definitions=found)

    def DeleteResourceDefinition(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._deleted("definition", (request.name,), context)
        return resource_definition_service_pb2.DeleteResourceDefinitionResponse(resource_definition=found)

    def ApplyPipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        it = request.pipeline
        self._take(request, context, it.name)
        new, outcome = self._apply("pipeline", (it.name,), it, not request.validate_only)
        return pipeline_service_pb2.ApplyPipelineResponse(pipeline=new, outcome=outcome)

    def GetPipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return pipeline_service_pb2.GetPipelineResponse(pipeline=self._one("pipeline", (request.name,), context))

    def ListPipelines(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return pipeline_service_pb2.ListPipelinesResponse(pipelines=self._listed("pipeline"))

    def DeletePipeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._deleted("pipeline", (request.name,), context)
        return pipeline_service_pb2.DeletePipelineResponse(pipeline=found)

    # Resources.

    def ApplyResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        it = request.resource
        self._take(request, context, it.name)
        new, outcome = self._apply("resource", (it.definition, it.name), it, not request.validate_only)
        started = outcome != ApplyOutcome.APPLY_OUTCOME_UNCHANGED and not request.validate_only
        run = Run(id=RUN_ID) if started else None
        return resource_service_pb2.ApplyResourceResponse(resource=new, outcome=outcome, run=run)

    def GetResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._one("resource", (request.definition, request.name), context)
        return resource_service_pb2.GetResourceResponse(resource=found)

    def ListResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return resource_service_pb2.ListResourcesResponse(resources=self._listed("resource"))

    def DeleteResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._deleted("resource", (request.definition, request.name), context)
        return resource_service_pb2.DeleteResourceResponse(resource=found)

    # Schedules.

    def ApplySchedule(self, request: Any, context: Any) -> Any:  # noqa: N802
        it = request.schedule
        self._take(request, context, it.name)
        new, outcome = self._apply("schedule", (it.name,), it, not request.validate_only)
        return schedule_service_pb2.ApplyScheduleResponse(schedule=new, outcome=outcome)

    def GetSchedule(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return schedule_service_pb2.GetScheduleResponse(schedule=self._one("schedule", (request.name,), context))

    def ListSchedules(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return schedule_service_pb2.ListSchedulesResponse(schedules=self._listed("schedule"))

    def DeleteSchedule(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        found = self._deleted("schedule", (request.name,), context)
        return schedule_service_pb2.DeleteScheduleResponse(schedule=found)

    # Runs.

    def _run(self, request: Any, context: Any) -> Run:
        self._take(request, context)
        found = self.runs.get(request.id)
        if found is None:
            _not_found(context, f"there is no run {request.id}")
        assert found is not None
        return found

    def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        run = a_run(definition=request.definition, resource=request.resource, pipeline=request.pipeline)
        return run_service_pb2.StartRunResponse(run=self.runs.setdefault(run.id, run))

    def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        return run_service_pb2.GetRunResponse(run=self._run(request, context))

    def ListRuns(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        parent, caller = request.parent_run, request.caller_run
        runs = [
            run
            for run in self.runs.values()
            if (not parent or run.parent_run == parent) and (not caller or run.caller_run == caller)
        ]
        return run_service_pb2.ListRunsResponse(runs=runs)

    def ListLocks(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        locks = [lock for lock in self.locks if request.key in ("", lock.key)]
        return run_service_pb2.ListLocksResponse(locks=locks)

    def CancelRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = self._run(request, context)
        run.state = RunState.RUN_STATE_CANCELLING
        return run_service_pb2.CancelRunResponse(run=run)

    def DeleteRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = self._run(request, context)
        return run_service_pb2.DeleteRunResponse(run=self.runs.pop(run.id))

    def WatchRun(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        run = self._run(request, context)
        yield run_service_pb2.WatchRunResponse(snapshot=RunSnapshot(runs=[run]))
        yield run_service_pb2.WatchRunResponse(snapshot_end=SnapshotEnd())
        while run.state not in ENDS and (changed := self.changes.get()) is not None:
            run = changed
            basic = Run()
            basic.CopyFrom(run)
            basic.ClearField("steps")
            change = RunChange(run=basic, steps=run.steps)
            yield run_service_pb2.WatchRunResponse(changes=RunChanges(changes=[change]))

    def ReadLogs(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self._take(request, context)
        yield log_service_pb2.ReadLogsResponse(lines=self.lines)
        if request.follow:
            self.changes.get()

    # Drivers and the server.

    def GetDriver(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = [driver for driver in self.drivers if driver.name == request.name]
        return driver_service_pb2.GetDriverResponse(driver=found[0])

    def ListDrivers(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return driver_service_pb2.ListDriversResponse(drivers=self.drivers)

    def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._take(request, context)
        return server_service_pb2.GetServerInfoResponse(server_info=ServerInfo(version="9.9.9", store="sqlite"))


ENDS = {RunState.RUN_STATE_SUCCEEDED, RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED}


def _not_found(context: grpc.ServicerContext, message: str) -> None:
    _refuse(context, Refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", message))


def _refuse(context: grpc.ServicerContext, refusal: Refusal) -> None:
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        for field, description in refusal.violations
    ]
    for detail in (
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain="conveyor"),
        error_details_pb2.BadRequest(field_violations=violations),
    ):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(refusal.code, refusal.message)


def a_run(state: RunState.ValueType = RunState.RUN_STATE_RUNNING, **fields: Any) -> Run:
    """A run of three steps, the first of which has succeeded."""
    steps = [
        StepRun(step="build", driver="compile", state=StepState.STEP_STATE_SUCCEEDED, attempt=1, max_attempts=1),
        StepRun(step="test", driver="pytest", state=StepState.STEP_STATE_RUNNING, attempt=2, max_attempts=3),
        StepRun(step="ship", driver="upload", state=StepState.STEP_STATE_PENDING),
    ]
    run = Run(id=RUN_ID, pipeline="release", definition="app", resource="shop", state=state, steps=steps)
    run.step_states.extend(step.state for step in steps)
    for name, value in fields.items():
        if value:
            setattr(run, name, value)
    run.create_time.FromJsonString("2026-01-31T12:00:00Z")
    run.start_time.FromJsonString("2026-01-31T12:00:00.5Z")
    run.update_time.FromJsonString("2026-01-31T12:00:02Z")
    if state in ENDS:
        run.end_time.FromJsonString("2026-01-31T12:00:04.5Z")
    return run


@pytest.fixture
def run_id() -> str:
    """The id of all runs that nobody names."""
    return RUN_ID


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Makes runs."""
    return a_run


@pytest.fixture
def refusal() -> type[Refusal]:
    """Makes refusals."""
    return Refusal


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A fake server; CONVEYOR_ADDRESS leads to it."""
    fake = FakeServer()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    for module in (
        resource_definition_service_pb2_grpc,
        pipeline_service_pb2_grpc,
        resource_service_pb2_grpc,
        schedule_service_pb2_grpc,
        run_service_pb2_grpc,
        log_service_pb2_grpc,
        driver_service_pb2_grpc,
        server_service_pb2_grpc,
    ):
        name = next(each for each in vars(module) if each.startswith("add_"))
        getattr(module, name)(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setenv("CONVEYOR_ADDRESS", fake.address)
    yield fake
    for _ in range(8):
        fake.changes.put(None)
    server.stop(None).wait()


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def conveyor(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command line in this process."""
    from conveyor.cli.dispatch import dispatch

    def run(*arguments: str) -> Done:
        code = dispatch(arguments)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return Done(int(code), captured.out.decode(), captured.err.decode())

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts a command line as a process, which does not outlive the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        code = "import sys; from conveyor.cli.main import main; sys.argv[0] = 'conveyor'; main()"
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], **options)
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
