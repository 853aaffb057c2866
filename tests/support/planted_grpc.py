"""A driver on the Work stream with one fault or none, without any SDK. A program: its argument is the fault."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.result_pb2 import DriverResult, Outcome, ResultReport
from conveyor.v1.worker_pb2 import Assignment, Drain, Heartbeat, Hello, Holding, Welcome
from conveyor.v1.worker_service_pb2 import WorkRequest, WorkResponse
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.support.planted_work import on_sigterm, work

Key = tuple[str, str, int]


@dataclass(eq=False)
class Job:
    """One attempt."""

    given: Assignment
    token: str
    task: asyncio.Task[None] | None = None
    report: ResultReport | None = None
    lines: list[LogLine] = field(default_factory=list)


class Worker:
    """One worker. It lives until it is drained."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.slots = int(os.environ["CONVEYOR_SLOTS"])
        self.places = asyncio.Semaphore(1 if fault == "slots" else self.slots)
        self.session = ""
        self.jobs: dict[Key, Job] = {}
        self.tokens: dict[tuple[str, str], str] = {}
        self.draining = False
        self.done = asyncio.Event()
        self.call: grpc.aio.StreamStreamCall[WorkRequest, WorkResponse] | None = None
        self.writing = asyncio.Lock()

    async def run(self) -> None:
        """Stay connected until drained."""
        on_sigterm(self.drain, self.fault)
        options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(os.environ["CONVEYOR_ADDRESS"], options=options) as channel:
            streams = asyncio.create_task(self.keep_connected(WorkerServiceStub(channel)))
            await self.done.wait()
            streams.cancel()
            await asyncio.wait([streams])

    async def keep_connected(self, stub: WorkerServiceStub) -> None:
        while True:
            tasks = []
            call = stub.Work()
            try:
                await call.write(WorkRequest(hello=self.hello()))
                impatience = 1.0 if self.fault == "slow-server-welcome" else None
                first: WorkResponse = await asyncio.wait_for(call.read(), impatience)
                self.session = first.welcome.session
                self.call = call
                tasks = [asyncio.create_task(self.beat(first.welcome)), asyncio.create_task(self.catch_up())]
                while isinstance(response := await call.read(), WorkResponse):
                    self.take(response)
            except (grpc.aio.AioRpcError, TimeoutError):
                call.cancel()
            finally:
                self.call = None
                for task in tasks:
                    task.cancel()
            await asyncio.sleep(0.1)

    def hello(self) -> Hello:
        holding = [Holding(run=run, step=step, attempt=n, token=job.token) for (run, step, n), job in self.jobs.items()]
        return Hello(
            namespace="" if self.fault == "registers" else os.environ["CONVEYOR_NAMESPACE"],
            driver="planted",
            worker="planted",
            session="" if self.fault == "reattaches" else self.session,
            slots=self.slots,
            holding=holding,
        )

    async def beat(self, welcome: Welcome) -> None:
        while self.fault != "heartbeats":
            await asyncio.sleep(welcome.heartbeat_interval.ToMilliseconds() / 1000)
            await self.say(WorkRequest(heartbeat=Heartbeat()))

    async def catch_up(self) -> None:
        """After a reconnect: what was not acked goes out again, or, with a fault, is done again."""
        for job in list(self.jobs.values()):
            if job.report is not None:
                await self.say(WorkRequest(results=[job.report]))
                if self.fault == "once":
                    self.start(job)

    def take(self, response: WorkResponse) -> None:
        if self.fault == "unknown-message" and not response.ListFields():
            sys.exit("a message that says nothing")
        for given in response.assignments:
            if self.fault == "unknown-field" and _knows_not_all_of(given):
                sys.exit("a field that is unknown")
            token = given.token
            if self.fault == "token":
                token = self.tokens.setdefault((given.run, given.step), token)
            job = self.jobs[given.run, given.step, given.attempt] = Job(given, token)
            self.start(job)
        for cancellation in response.cancellations:
            found = self.jobs.get((cancellation.run, cancellation.step, cancellation.attempt))
            if found is not None and found.task is not None:
                found.task.cancel()
        for ack in response.acks:
            self.jobs.pop((ack.run, ack.step, ack.attempt), None)
        if self.draining and not self.jobs:
            self.done.set()

    def start(self, job: Job) -> None:
        job.task = asyncio.create_task(self.do(job))

    async def do(self, job: Job) -> None:
        given = job.given
        key = {"run": given.run, "step": given.step, "attempt": given.attempt}
        async with self.places:
            lines: list[LogLine] = []
            sending: list[asyncio.Task[None]] = []

            def write(text: str) -> None:
                line = LogLine(**key, seq=len(lines) + 1, text=text)
                line.time.GetCurrentTime()
                lines.append(line)
                if self.fault != "logs-first" or len(lines) == 1:
                    sending.append(asyncio.ensure_future(self.say(WorkRequest(logs=[line]))))

            end = await work(MessageToDict(given.resource.spec), write, self.fault)
            if sending:
                await asyncio.wait(sending)
        result = DriverResult(outcome=Outcome.Value(f"OUTCOME_{end.outcome}"), message=end.message)
        if end.data:
            result.data.update(dict(end.data))
        job.report = ResultReport(**key, token=job.token, result=result)
        call = self.call
        await self.say(WorkRequest(results=[job.report]))
        if self.fault == "logs-first":
            await self.say(WorkRequest(logs=lines[1:]))
        while self.fault == "slow-server":
            await asyncio.sleep(0.5)
            if job not in self.jobs.values() or self.call is not call:
                return
            await self.say(WorkRequest(results=[job.report]))

    def drain(self) -> None:
        self.draining = True
        self.drained = asyncio.ensure_future(self.say(WorkRequest(drain=Drain())))

    async def say(self, request: WorkRequest) -> None:
        """Say something. On a broken stream it is lost."""
        async with self.writing:
            call = self.call
            if call is None:
                return
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                call.cancel()


def _knows_not_all_of(message: Message) -> bool:
    return len(UnknownFieldSet(message)) > 0


async def main() -> None:
    """The driver."""
    await Worker(sys.argv[1]).run()


if __name__ == "__main__":
    asyncio.run(main())
