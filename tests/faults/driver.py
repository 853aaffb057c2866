"""The driver of a round, as a process: does what its step's part of the pipeline's context says, and writes down all.

    python -m tests.faults.driver NAME WORKER HISTORY DEFINITIONS --transport grpc|jetstream …

The context holds `acts`: for each step a list, one act for each attempt and the last one for all further ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

from conveyor.sdk import Driver, Job
from conveyor.sdk.grpc_transport import GrpcTransport
from conveyor.sdk.jetstream import JetStreamTransport
from conveyor.sdk.jetstream_wire import Ticket, result_subject
from conveyor.sdk.log_buffer import AttemptKey
from conveyor.v1.result_pb2 import Disposition, DriverResult, Outcome, ResultAck
from tests.faults.history import Recorder


def short(token: str) -> str:
    """A name for a token: tokens themselves are secrets, also in a history."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


class Actor:
    """The handler."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def __call__(self, job: Job) -> dict[str, object] | DriverResult:
        act: dict[str, Any] = _act(job)
        token = short(job.assignment.token)
        lines = int(act.get("lines", 0))
        inputs = {step: each.state for step, each in job.results.items()}
        self._note("began", job, token=token, inputs=inputs, lines=lines, params=job.params)
        for number in range(1, lines + 1):
            job.log("%s %s", token, number)
        try:
            await self._work(job, token, act)
            answer = act["answer"]
        except asyncio.CancelledError:
            answer = "stopped"
        self._note("answered", job, token=token, answer=answer)
        if answer == "fail":
            raise job.fail(f"no {token}")
        if answer == "refuse":
            raise job.fail(f"never {token}", retryable=False)
        if answer in ("give-up", "stopped"):
            return DriverResult(outcome=Outcome.OUTCOME_CANCELLED, message=f"{answer} {token}")
        return {"token": token, "attempt": job.attempt}

    async def _work(self, job: Job, token: str, act: dict[str, Any]) -> None:
        until = asyncio.get_running_loop().time() + float(act["seconds"])
        while (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                self._note("told", job, token=token)
                if not act.get("stubborn"):
                    raise

    def _note(self, kind: str, job: Job, **fields: Any) -> None:
        self._recorder.note(kind, run=job.run, step=job.step, attempt=job.attempt, **fields)


def _act(job: Job) -> dict[str, Any]:
    if not job.pipeline:
        return {"answer": "ok", "seconds": 0, "lines": 1}
    acts: Any = job.context["acts"]
    mine = acts[job.step]  # an instance has its own
    found: dict[str, Any] = mine[min(job.attempt, len(mine)) - 1]
    return found


def record_acks(recorder: Recorder) -> None:
    """Write down what the server says of each result. The SDK only logs what does not count."""
    take = GrpcTransport._take_ack

    def noted(self: GrpcTransport, ack: ResultAck) -> None:
        pending = self._unacked.get((ack.run, ack.step, ack.attempt))
        take(self, ack)
        recorder.note(
            "acked",
            run=ack.run,
            step=ack.step,
            attempt=ack.attempt,
            token=short(pending[1].token) if pending is not None else "",
            disposition=Disposition.Name(ack.disposition).removeprefix("DISPOSITION_"),
        )

    GrpcTransport._take_ack = noted  # type: ignore[method-assign]


_AGAIN = frozenset("0123")
"""How the names of tokens begin whose results are sent twice: a quarter of all."""
_AFTER = 0.1
"""Seconds: by then most have been taken, and what follows from them is under way."""


def send_some_twice() -> None:
    """Have a result sent once more after its first time, as after a lost answer."""
    report, answer = GrpcTransport._report, JetStreamTransport._answer

    def report_twice(self: GrpcTransport, job: Job, result: DriverResult) -> None:
        report(self, job, result)
        pending = self._unacked[job.key]

        def again() -> None:
            self._unsent.append(pending)
            self._wake.set()

        if short(job.assignment.token)[0] in _AGAIN:
            self._loop.call_later(_AFTER, again)

    async def answer_twice(
        self: JetStreamTransport, key: AttemptKey, ticket: Ticket, result: DriverResult, lines: int
    ) -> None:
        await answer(self, key, ticket, result, lines)
        if short(ticket.assignment.token)[0] in _AGAIN:
            await asyncio.sleep(_AFTER)
            # Without an id, by which the broker would leave it out.
            await self._publish(result_subject(self._options.namespace), self._body(ticket, result), None)

    GrpcTransport._report = report_twice  # type: ignore[method-assign]
    JetStreamTransport._answer = answer_twice  # type: ignore[method-assign]


def main() -> None:
    """The driver."""
    name, worker, file, definitions, *arguments = sys.argv[1:]
    recorder = Recorder(Path(file), worker)
    recorder.note("up")
    record_acks(recorder)
    send_some_twice()
    driver = Driver(name, worker=worker, definitions=list(filter(None, definitions.split(","))))
    driver.reconcile(Actor(recorder))
    driver.run(arguments)


if __name__ == "__main__":
    main()
