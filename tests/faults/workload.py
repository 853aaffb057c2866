"""What clients do in a round: planned from the seed, then done while faults strike, and written down."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, TypeVar

from conveyor.sdk import (
    ApiError,
    Client,
    ConveyorError,
    DeadlineExceeded,
    NotFound,
    RunUpdate,
    Unavailable,
)
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run, StepReason
from conveyor.v1.schedule_pb2 import Schedule
from tests.faults.conditions import MOST
from tests.faults.gates import random_decision
from tests.faults.history import REQUEST, Recorder, seen, step_state
from tests.faults.pipelines import random_pipeline
from tests.faults.schedules import random_schedules
from tests.faults.watcher import RawWatcher

T = TypeVar("T")

NAMESPACE = "faults"

_KINDS = [
    *["start"] * 9,
    "create",
    "edit",
    *["cancel"] * 3,
    *["retry"] * 2,
    *["decide"] * 8,
    *["trigger"] * 2,
    "delete",
    "get",
    "list",
    "logs",
    *["watch"] * 2,
]
_RUN_BY_OTHERS = ("p5", "p6", "p7")
_AWAITING = StepReason.STEP_REASON_AWAITING_DECISION
_PATIENCE = 4.0
"""Seconds for which somebody waits for a gate to open."""
_PERSISTENCE = 30.0
"""Seconds for which a client repeats what was not answered."""


@dataclass(frozen=True, slots=True)
class Op:
    """One thing that a client does."""

    at: float
    """Seconds from the start of the workload."""
    kind: str
    client: int
    target: int = -1
    """The run that the op of this number started."""
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that clients are going to do; the same for the same seed."""

    pipelines: list[Pipeline]
    resources: list[Resource]
    schedules: list[Schedule]
    ops: list[Op]


def plan(
    rng: Random,
    drivers: Mapping[str, bool],
    seconds: float,
    *,
    clients: int = 3,
    rate: float = 15.0,
    resources: int = 4,
) -> Plan:
    """`rate` in ops per second; `drivers` as for pipelines."""
    pipelines = [_pipeline(rng, f"p{number}", drivers) for number in range(8)]
    targets = [Resource(name=f"r{number}", definition="app") for number in range(resources)]
    ops: list[Op] = []
    starts: list[int] = []
    for number in range(int(seconds * rate)):
        at = rng.uniform(0, seconds) if number > clients else 0.0
        ops.append(Op(at, rng.choice(_KINDS) if number > 3 else "start", rng.randrange(clients)))
    ops.sort(key=lambda op: op.at)
    for number, op in enumerate(ops):
        made = _detailed(rng, op, number, starts, pipelines, targets, drivers)
        ops[number] = made
        if made.kind in ("start", "create", "retry", "trigger"):
            starts.append(number)
    return Plan(pipelines, targets, random_schedules(rng, pipelines, targets), ops)


def _others(name: str) -> tuple[str, ...]:
    """The pipelines that steps of this one may run: those run none, so that all come to an end."""
    return () if name in _RUN_BY_OTHERS else _RUN_BY_OTHERS


def _pipeline(rng: Random, name: str, drivers: Mapping[str, bool]) -> Pipeline:
    return random_pipeline(rng, name, drivers, _others(name))


def _detailed(
    rng: Random,
    op: Op,
    number: int,
    starts: list[int],
    pipelines: list[Pipeline],
    resources: list[Resource],
    drivers: Mapping[str, bool],
) -> Op:
    # Mostly a run of a moment ago: it is still under way.
    target = rng.choice(starts[-3:] if rng.random() < 0.8 else starts) if starts else -1
    request = f"{number}-{rng.randrange(1 << 30):x}"
    arguments: dict[str, Any] = {}
    if op.kind == "start":
        arguments = {
            "request": request,
            "pipeline": rng.choice(pipelines).name,
            "resource": rng.choice(resources).name,
            "n": rng.choice([None, rng.randint(0, MOST)]),
            "again": rng.random() < 0.2,
        }
    elif op.kind == "create":
        # Without a pipeline it is a broadcast.
        pipeline = rng.choice(["", *(each.name for each in pipelines)])
        arguments = {"request": request, "pipeline": pipeline, "again": rng.random() < 0.5}
    elif op.kind == "edit":
        changed = rng.randrange(len(pipelines))
        arguments = {"pipeline": changed, "to": _pipeline(rng, pipelines[changed].name, drivers)}
    elif op.kind == "retry":
        arguments = {"request": request}
    elif op.kind == "decide":
        arguments = {"request": request, **random_decision(rng)}
    elif op.kind == "trigger":
        arguments = {"request": request, "schedule": rng.choice(["patient", "eager"]), "again": rng.random() < 0.5}
    elif op.kind == "cancel":
        arguments = {"request": request, "force": rng.random() < 0.2, "grace": rng.choice([0.5, 1, 3])}
    return Op(op.at, op.kind, op.client, target, arguments)


class Workload:
    """Does what was planned. Leaving it ends its watchers and closes its clients."""

    def __init__(
        self, planned: Plan, addresses: str, recorder: Recorder, *, clients: int = 3, watchers: int = 2
    ) -> None:
        self._plan = planned
        self._recorder = recorder
        self._clients = [Client(addresses, namespace=NAMESPACE, timeout=8) for _ in range(clients)]
        self._watching = Client(addresses, namespace=NAMESPACE, timeout=8)
        self._raw = RawWatcher("watch-raw", addresses, NAMESPACE, recorder)
        self._calls = itertools.count(1)
        self._started: dict[int, str] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self.seen: dict[str, dict[str, str]] = {"watch-all": {}, "watch-raw": self._raw.known}
        """For each watcher of all runs the last etag of each run."""

    async def prepare(self) -> None:
        """Make what runs need; nothing goes wrong yet."""
        client = self._clients[0]
        await client.definitions.apply(ResourceDefinition(name="app"))
        for pipeline in self._plan.pipelines:
            await client.pipelines.apply(pipeline)
        for resource in self._plan.resources:
            await client.resources.create(resource)
        for schedule in self._plan.schedules:
            await client.schedules.create(schedule)
        self._watchers.append(asyncio.create_task(self._watch_all("watch-all", self._watching)))
        self._watchers.append(asyncio.create_task(self._raw.run()))

    async def run(self) -> None:
        """Do all of it, each op at its time; returns when the last one has its answer or is given up."""
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._at(start, number, op) for number, op in enumerate(self._plan.ops)))
        # What is left must end, and nothing begin any more.
        for schedule in self._plan.schedules:
            await self._insist("pause", partial(self._clients[0].schedules.pause, schedule.name))

    async def close(self) -> None:
        """End what watches, and leave."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for client in (*self._clients, self._watching):
            await client.close()

    async def _at(self, start: float, number: int, op: Op) -> None:
        await asyncio.sleep(start + op.at - asyncio.get_running_loop().time())
        client = self._clients[op.client]
        if op.kind in ("start", "create", "trigger", "edit", "list"):
            await getattr(self, f"_{op.kind}")(number, op, client)
        elif op.target in self._started:
            await getattr(self, f"_{op.kind}")(number, op, client, self._started[op.target])

    async def _start(self, number: int, op: Op, client: Client) -> None:
        request, pipeline, resource = (op.arguments[name] for name in ("request", "pipeline", "resource"))

        params = None if op.arguments["n"] is None else {"n": op.arguments["n"]}

        async def start() -> Run:
            labels = {REQUEST: request}
            return await client.runs.start("app", resource, pipeline, params, labels=labels, request_id=request)

        for _ in range(2 if op.arguments["again"] else 1):
            run = await self._insist("start", start, request=request, pipeline=pipeline)
            if run is not None:
                self._started[number] = run.id

    async def _create(self, number: int, op: Op, client: Client) -> None:
        request, pipeline = op.arguments["request"], op.arguments["pipeline"]
        made = Resource(name=f"x{number}", definition="app", pipeline=pipeline, labels={REQUEST: request})

        async def create() -> Run:
            run = (await client.resources.create(made, request_id=request)).run
            assert run is not None
            return run

        for _ in range(2 if op.arguments["again"] else 1):
            run = await self._insist("create", create, request=request, pipeline=pipeline)
            if run is not None:
                self._started[number] = run.id

    async def _trigger(self, number: int, op: Op, client: Client) -> None:
        request, schedule = op.arguments["request"], op.arguments["schedule"]

        async def trigger() -> Run:
            return await client.schedules.trigger(schedule, request_id=request)

        for _ in range(2 if op.arguments["again"] else 1):
            run = await self._insist("trigger", trigger, asked=request, schedule=schedule)
            if run is not None:
                self._started[number] = run.id

    async def _edit(self, number: int, op: Op, client: Client) -> None:
        """Runs that are under way hold what it was."""
        await self._call("edit", lambda: client.pipelines.apply(op.arguments["to"]), pipeline=op.arguments["pipeline"])

    async def _retry(self, number: int, op: Op, client: Client, run: str) -> None:
        request = op.arguments["request"]
        await self._ended(client, run)

        async def retry() -> Run:
            return await client.runs.retry(run, labels={REQUEST: request}, request_id=request)

        made = await self._insist("retry", retry, request=request, parent=run)
        if made is not None:
            self._started[number] = made.id

    async def _cancel(self, number: int, op: Op, client: Client, run: str) -> None:
        given = op.arguments

        async def cancel() -> Run:
            return await client.runs.cancel(run, "enough", given["force"], given["grace"], request_id=given["request"])

        await self._insist("cancel", cancel, run=run, force=given["force"], grace=given["grace"])

    async def _decide(self, number: int, op: Op, client: Client, run: str) -> None:
        """Wait a little for a gate to open, and decide at all that are."""
        given = op.arguments
        open_gates: list[str] = []
        with contextlib.suppress(ConveyorError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not open_gates:
                    await asyncio.sleep(0.1)
                    steps = (await client.runs.get(run)).steps
                    open_gates = [each.step for each in steps if each.reason == _AWAITING]
        for step in open_gates:
            decide = partial(
                client.runs.decide, run, step, given["decision"], given["by"], request_id=f"{given['request']}-{step}"
            )
            await self._insist("decide", decide, run=run, step=step, decision=given["decision"], by=given["by"])

    async def _delete(self, number: int, op: Op, client: Client, run: str) -> None:
        await self._ended(client, run)
        await self._insist("delete", lambda: client.runs.delete(run), run=run)

    async def _get(self, number: int, op: Op, client: Client, run: str) -> None:
        await self._call("get", lambda: client.runs.get(run), run=run)

    async def _list(self, number: int, op: Op, client: Client) -> None:
        async def listed() -> list[str]:
            return [run.id async for run in client.runs.list(page_size=50)]

        await self._call("list", listed)

    async def _logs(self, number: int, op: Op, client: Client, run: str) -> None:
        async def lines() -> None:
            async with asyncio.timeout(8):
                async for _ in client.logs.read(run, give_up_after=8):
                    pass

        await self._call("logs", lines, run=run)

    async def _watch(self, number: int, op: Op, client: Client, run: str) -> None:
        try:
            async with asyncio.timeout(60):
                async for update in client.runs.watch(run, give_up_after=30):
                    self._saw(f"watch-{number}", update)
        except (ConveyorError, TimeoutError) as error:
            told = {"code": getattr(error, "code", ""), "reason": getattr(error, "reason", ""), "message": str(error)}
            self._recorder.note("watch-error", watcher=f"watch-{number}", run=run, **told)

    async def _watch_all(self, name: str, client: Client) -> None:
        async for update in client.runs.watch_all():
            self._saw(name, update)
            self.seen[name][update.run.id] = update.run.etag

    def _saw(self, watcher: str, update: RunUpdate) -> None:
        self._recorder.note(
            "saw",
            watcher=watcher,
            **seen(update.run),
            changed={step.step: step_state(step.state) for step in update.changed},
            skipped=update.skipped,
            reset=update.reset,
            deleted=update.deleted,
        )

    async def _ended(self, client: Client, run: str) -> None:
        """Give a run some time to end; whatever is done to one that goes on is refused, which is as well."""
        try:
            await client.runs.wait(run, 5, give_up_after=5)
        except ConveyorError as error:
            self._recorder.note("wait-error", run=run, error=repr(error))

    async def _insist(self, what: str, work: Callable[[], Awaitable[T]], **request: Any) -> T | None:
        """Repeat a call, which has a request id or may be repeated, until it is answered."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _PERSISTENCE
        while loop.time() < give_up:
            try:
                return await self._tried(what, work, **request)
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(0.2)
            except ApiError:
                return None
        return None

    async def _call(self, what: str, work: Callable[[], Awaitable[Any]], **request: Any) -> None:
        with contextlib.suppress(ConveyorError, TimeoutError):
            await self._tried(what, work, **request)

    async def _tried(self, what: str, work: Callable[[], Awaitable[T]], **request: Any) -> T:
        """One call, written down before and after."""
        call = next(self._calls)
        self._recorder.note("invoke", call=call, what=what, **request)
        try:
            answer = await work()
        except ApiError as error:
            told = {"code": error.code, "reason": error.reason, "message": error.message}
            self._recorder.note("error", call=call, what=what, **request, **told)
            raise
        except (ConveyorError, TimeoutError) as error:
            self._recorder.note(
                "error", call=call, what=what, **request, code="GIVEN_UP", reason="", message=repr(error)
            )
            raise
        if isinstance(answer, Run):
            request |= seen(answer)
        elif isinstance(answer, list):
            request |= {"runs": answer}
        self._recorder.note("ok", call=call, what=what, **request)
        return answer


async def stored(client: Client) -> list[Run]:
    """All runs as they are stored, with their steps. Those that go while they are read are left out."""
    found = []
    for run in [run async for run in client.runs.list(page_size=500)]:
        try:
            found.append(await client.runs.get(run.id))
        except NotFound:
            continue
    return found
