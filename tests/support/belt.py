"""One namespace of a running server: a client, drivers inside of the test, pipelines, runs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from conveyor.sdk import Client, Driver, to_struct
from conveyor.v1.pipeline_pb2 import Matrix, Order, Pipeline, RetryPolicy, Step
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run, RunReason, RunState, StepReason, StepRun, StepState
from tests.support.behaviour import Handler
from tests.support.driver_process import DriverProcess
from tests.support.etcd import Etcd
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import LONG, until


@dataclass
class Site:
    """A server and what it stands on."""

    server: ConveyorServer
    nats: NatsServer
    etcd: Etcd | None = None


def step(
    name: str,
    driver: str = "",
    *needs: str,
    attempts: int = 0,
    backoff: float = 0.01,
    timeout: float = 0,
    queue_timeout: float = 0,
    **fields: Any,
) -> Step:
    """A step; its driver is named as it is unless said otherwise. `attempts` above 0 makes a retry policy."""
    made = Step(id=name, driver=driver or name, needs=needs, **fields)
    if attempts:
        made.retry.CopyFrom(RetryPolicy(max_attempts=attempts, jitter=0))
        made.retry.initial_backoff.FromTimedelta(timedelta(seconds=backoff))
    if timeout:
        made.timeout.FromTimedelta(timedelta(seconds=timeout))
    if queue_timeout:
        made.queue_timeout.FromTimedelta(timedelta(seconds=queue_timeout))
    return made


def matrix(
    axes: dict[str, Any] | None = None,
    *,
    include: list[dict[str, Any]] | None = None,
    exclude: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> Matrix:
    """A matrix from plain values."""
    made = Matrix(include=map(to_struct, include or ()), exclude=map(to_struct, exclude or ()), **fields)
    for name, value in to_struct(axes or {}).fields.items():
        made.axes[name].CopyFrom(value)
    return made


def state(run: Run) -> str:
    """The run's state, without its prefix."""
    return RunState.Name(run.state).removeprefix("RUN_STATE_")


def reason(run: Run) -> str:
    """The run's reason, without its prefix."""
    return RunReason.Name(run.reason).removeprefix("RUN_REASON_")


def states(run: Run) -> dict[str, str]:
    """The state of each step, without its prefix."""
    return {each.step: StepState.Name(each.state).removeprefix("STEP_STATE_") for each in run.steps}


def step_reason(each: StepRun) -> str:
    """The step's reason, without its prefix."""
    return StepReason.Name(each.reason).removeprefix("STEP_REASON_")


class Belt:
    """A namespace of its own. Leaving it ends its drivers."""

    def __init__(self, site: Site, directory: Path, *, address: str = "", namespace: str = "") -> None:
        self.site = site
        self.namespace = namespace or f"t-{secrets.token_hex(4)}"
        self.address = address or site.server.address
        self.client = Client(self.address, namespace=self.namespace)
        self._directory = directory
        self._tasks: list[asyncio.Task[None]] = []
        self._processes: list[DriverProcess] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.client.close()

    def drive(self, name: str, handler: Handler, **options: Any) -> Driver:
        """Serve with a driver inside of this process. `address`, `transport` and the like are those of Driver."""
        given = {
            "address": self.address,
            "namespace": self.namespace,
            "nats": self.site.nats.url,
            "slots": 8,
            **options,
        }
        driver = Driver(name, **given)
        driver.reconcile(handler)
        self._tasks.append(asyncio.create_task(driver.serve(), name=f"driver {name}"))
        return driver

    async def drained(self, driver: Driver) -> None:
        """Drain a driver and wait for its end."""
        driver.drain()
        (task,) = (task for task in self._tasks if task.get_name() == f"driver {driver.name}" and not task.done())
        await task

    def spawn(self, name: str, *behaviour: str, **environment: str) -> DriverProcess:
        """Serve with a driver as a process of its own."""
        process = DriverProcess(
            name,
            *behaviour,
            environment={"CONVEYOR_ADDRESS": self.address, "CONVEYOR_NAMESPACE": self.namespace, **environment},
            log=self._directory / f"{name}.log",
        )
        self._processes.append(process)
        return process

    async def connected(self, *names: str) -> None:
        """Wait until each of these drivers has a worker."""

        async def there() -> bool:
            return {each.name async for each in self.client.drivers.list() if each.workers} >= set(names)

        await until(there, f"drivers {', '.join(names)}")

    async def pipeline(self, *steps: Step, name: str = "release", graph: bool = False, **fields: Any) -> None:
        """Apply a pipeline, and the definition `app` that resources have."""
        order = Order.ORDER_GRAPH if graph else Order.ORDER_LIST
        await self.client.definitions.apply(ResourceDefinition(name="app"))
        await self.client.pipelines.apply(Pipeline(name=name, order=order, steps=steps, **fields))

    async def start(self, pipeline: str = "release", *, resource: str = "", **spec: object) -> Run:
        """Start a run of a new resource on a pipeline."""
        made = Resource(
            name=resource or f"r-{secrets.token_hex(6)}", definition="app", pipeline=pipeline, spec=to_struct(spec)
        )
        _, run = await self.client.resources.create(made)
        assert run is not None
        return run

    async def ended(self, run: Run | str, within: float = LONG) -> Run:
        """The whole run, once it has ended."""
        run_id = run if isinstance(run, str) else run.id
        await self.client.runs.wait(run_id, within)
        return await self.client.runs.get(run_id)

    async def until_step(self, run: Run, step: str, *wanted: str, reason: str = "") -> StepRun:
        """Wait until a step is in one of these states, with a reason if one is named."""

        async def there() -> StepRun | None:
            steps = (await self.client.runs.get(run.id)).steps
            found = next((each for each in steps if each.step == step), None)
            if found is None:
                return None  # an instance of a matrix that is not expanded
            if StepState.Name(found.state).removeprefix("STEP_STATE_") not in wanted:
                return None
            return found if not reason or step_reason(found) == reason else None

        return await until(there, f"{step} to be {wanted} {reason}")

    async def until_broker_is_missed(self) -> None:
        """Wait until the server knows that its broker is away: what it published up to then may have gone out."""

        async def missed() -> bool:
            return not (await self.client.server_info()).broker_available

        await until(missed, "the server to miss its broker")

    async def lines(self, run: Run, **filters: Any) -> list[str]:
        """The text of a run's log lines."""
        return [line.text async for line in self.client.logs.read(run.id, **filters)]


def one(steps: Sequence[StepRun], name: str) -> StepRun:
    """The step of that name."""
    return next(each for each in steps if each.step == name)


on_both_stores = pytest.mark.parametrize("site", ["sqlite", "etcd"], indirect=True)
"""Runs a test on the shared server of each store."""
