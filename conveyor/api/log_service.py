"""LogService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import structlog

from conveyor.api.ports import Engine, Hub, Logs, closing
from conveyor.api.validation import validate
from conveyor.core import errors
from conveyor.core.plan import PlanStep
from conveyor.v1 import log_pb2, log_service_pb2_grpc
from conveyor.v1 import log_service_pb2 as pb

log = structlog.get_logger("conveyor.api")


class LogServicer(log_service_pb2_grpc.LogServiceServicer):
    """Takes and gives log lines. Each method does what the comment of its rpc says."""

    def __init__(self, engine: Engine, hub: Hub, logs: Logs) -> None:
        self._engine = engine
        self._hub = hub
        self._logs = logs

    async def WriteLogs(self, request: AsyncIterator[pb.WriteLogsRequest], context: Any) -> pb.WriteLogsResponse:
        acks: dict[tuple[str, str, int], log_pb2.LogAck] = {}
        drivers: dict[tuple[str, str, str], str] = {}
        async for part in request:
            namespace = await validate(part)
            lines: dict[str, list[log_pb2.LogLine]] = {}
            for line in part.lines:
                key = (namespace, line.run, line.step)
                driver = drivers.get(key)
                if driver is None:
                    driver = drivers[key] = (await self._step(namespace, line.run, line.step)).driver
                lines.setdefault(driver, []).append(line)
            for driver, own in lines.items():
                for ack in await self._logs.append(namespace, own, driver):
                    acks[ack.run, ack.step, ack.attempt] = ack
        return pb.WriteLogsResponse(log_acks=acks.values())

    async def ReadLogs(self, request: pb.ReadLogsRequest, context: Any) -> AsyncGenerator[pb.ReadLogsResponse, None]:
        namespace = await validate(request)
        run = await self._engine.run(namespace, request.run)
        step = await self._step(namespace, request.run, request.step) if request.step else None
        driver = step.driver if step is not None else ""
        wanted: dict[str, Any] = {
            "step": request.step,
            "instances": step is not None and step.matrix is not None,
            "attempt": request.attempt,
            "driver": driver,
            "cursor": request.cursor,
            "tail": request.tail,
        }
        if not request.follow or run.state.terminal:
            async with aclosing(self._logs.read(namespace, request.run, **wanted)) as parts:
                async for lines in parts:
                    yield pb.ReadLogsResponse(lines=lines)
            return
        finished = asyncio.Event()
        watching = asyncio.create_task(self._wait_for_end(namespace, request.run, finished))
        try:
            async with aclosing(self._logs.follow(namespace, request.run, finished, **wanted)) as parts:
                async for lines in parts:
                    yield pb.ReadLogsResponse(lines=lines)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _wait_for_end(self, namespace: str, run: str, finished: asyncio.Event) -> None:
        """Set `finished` when the run has ended, or when nobody can say any more."""
        try:
            async with closing(self._hub.watch_run(namespace, run)) as responses:
                async for _ in responses:
                    pass
        except errors.NotFound:
            pass  # deleted since
        except Exception:
            log.exception("follow_lost_its_run", run_id=run)
        finally:
            finished.set()

    async def _step(self, namespace: str, run_id: str, step: str) -> PlanStep:
        """A step of a run. Raises errors.NotFound."""
        run = await self._engine.run(namespace, run_id)
        index = run.state.plan.index.get(step)
        if index is None:
            raise errors.NotFound(f"run {run_id} has no step {step}")
        return run.state.plan.steps[index]
