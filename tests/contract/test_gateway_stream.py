"""What may be said on a Work stream and on ReportResults, and how it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from conveyor.gateway import outbox as outboxes
from conveyor.gateway import service
from conveyor.gateway.outbox import Outbox
from conveyor.v1 import result_pb2, worker_pb2, worker_service_pb2
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.support.rig import (
    FAILED,
    RUN_FAILED,
    RUN_SUCCEEDED,
    RUNNING,
    Replica,
    Worker,
    mute,
    reason,
    report,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
VIOLATION = (grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL_VIOLATION")
Request = worker_service_pb2.WorkRequest
Hello = worker_pb2.Hello


async def refused(replica: Replica, *said: Request | bytes, done: bool = False) -> tuple[grpc.StatusCode, str]:
    """How a stream ends on which this is said."""
    async with grpc.aio.insecure_channel(replica.address) as channel:
        raw = channel.stream_stream(
            "/conveyor.v1.WorkerService/Work",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=worker_service_pb2.WorkResponse.FromString,
        )()
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012
            for request in said:
                await raw.write(request)
            if done:
                await raw.done_writing()
            while await raw.read() is not grpc.aio.EOF:
                pass
    return caught.value.code(), reason(caught.value)


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        ({"driver": "", "slots": 1}, INVALID),
        ({"driver": "A_b", "slots": 1}, INVALID),
        ({"driver": "a", "slots": 0}, INVALID),
        ({"driver": "a", "slots": 10_001}, INVALID),
        ({"driver": "a", "slots": 1, "namespace": "no/name"}, INVALID),
        ({"driver": "a", "slots": 1, "definitions": ["ok", "*"]}, INVALID),
        ({"driver": "a", "slots": 1, "definitions": ["a"] * 1001}, INVALID),
        ({"driver": "a", "slots": 1, "worker": "w" * 254}, INVALID),
        ({"driver": "a", "slots": 1, "sdk": "s" * 254}, INVALID),
        ({"driver": "a", "slots": 1, "session": "../x\0"}, INVALID),
        ({"driver": "a", "slots": 1, "labels": {str(i): "" for i in range(65)}}, INVALID),
        ({"driver": "a", "slots": 1, "labels": {"k": "v" * 257}}, INVALID),
        ({"driver": "a", "slots": 1, "protocol": 2}, INVALID),
    ],
)
async def test_a_hello_that_breaks_a_rule_is_refused(
    replica: Replica, hello: dict[str, Any], error: tuple[grpc.StatusCode, str]
) -> None:
    assert await refused(replica, Request(hello=Hello(**hello))) == error
    assert len(replica.sessions) == 0


async def test_a_stream_begins_with_hello_alone(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = Hello(driver="a", slots=1)
    results = [result_pb2.ResultReport(run="r")]
    assert await refused(replica, Request(heartbeat=worker_pb2.Heartbeat())) == VIOLATION
    assert await refused(replica, Request(hello=hello, results=results)) == VIOLATION
    assert await refused(replica, Request(hello=hello, drain=worker_pb2.Drain())) == VIOLATION
    assert await refused(replica, Request(hello=hello), Request(hello=hello)) == VIOLATION
    assert await refused(replica, done=True) == VIOLATION
    monkeypatch.setattr(service, "HELLO_WITHIN", 0.01)
    assert await refused(replica) == VIOLATION


async def test_a_session_of_another_driver_is_refused(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a")
    said = Hello(driver="b", slots=1, session=a.session)
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_MISMATCH")
    assert await refused(replica, Request(hello=said)) == expected
    assert a.error is None
    assert (await replica.ended(await replica.launch(step("a")))).state == RUN_SUCCEEDED


async def test_a_session_that_is_not_known_becomes_a_new_one(replica: Replica, workers: Connect) -> None:
    a = Worker(replica, "a")
    a.session = "0190c2a0-0000-7000-8000-000000000000"
    await a.connect()
    assert a.session != "0190c2a0-0000-7000-8000-000000000000"
    await a.cut()


@pytest.mark.parametrize("said", [b"\xff\xff", Request(heartbeat=worker_pb2.Heartbeat(slots=10_001))])
async def test_a_stream_that_breaks_the_rules_ends_in_order(replica: Replica, said: Request | bytes) -> None:
    code, _ = await refused(replica, Request(hello=Hello(driver="a", slots=1)), said)
    assert code != grpc.StatusCode.OK
    await until(lambda: len(replica.sessions) == 0)
    await until(lambda: not replica.engine._tasks)
    assert list(replica.engine.pool) == []


async def test_results_that_fit_nothing_get_an_answer_and_the_stream_lives(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"), step("b"))
    given = await a.next_given()
    wrong = [
        (report(given, driver="b"), result_pb2.DISPOSITION_INVALID),
        (report(given, result_pb2.OUTCOME_UNSPECIFIED), result_pb2.DISPOSITION_INVALID),
    ]
    for change, disposition in [
        ({"run": "no run\0"}, result_pb2.DISPOSITION_NOT_FOUND),
        ({"run": "0190c2a0-0000-7000-8000-000000000000"}, result_pb2.DISPOSITION_NOT_FOUND),
        ({"run": ""}, result_pb2.DISPOSITION_INVALID),
        ({"step": "zz"}, result_pb2.DISPOSITION_NOT_FOUND),
        ({"step": "b"}, result_pb2.DISPOSITION_INVALID),
        ({"attempt": 2}, result_pb2.DISPOSITION_STALE_ATTEMPT),
        ({"token": "no"}, result_pb2.DISPOSITION_STALE_ATTEMPT),
    ]:
        changed = report(given)
        changed.MergeFrom(result_pb2.ResultReport(**change))
        for name, value in change.items():
            setattr(changed, name, value)
        wrong.append((changed, disposition))
    for said, disposition in wrong:
        count = len(a.acks)
        await a.say(results=[said])
        await until(lambda count=count: len(a.acks) > count)
        assert a.acks[-1].disposition == disposition, said
    assert (await replica.states(run))[0] == RUNNING


async def test_results_may_come_from_any_program(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    async with grpc.aio.insecure_channel(replica.address) as channel:
        call = WorkerServiceStub(channel).ReportResults()
        results = [report(given, driver="x"), report(given, driver="a"), report(given, driver="a")]
        await call.write(worker_service_pb2.ReportResultsRequest(results=results))
        answer = await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert [ack.disposition for ack in answer.acks] == [
        result_pb2.DISPOSITION_INVALID,
        result_pb2.DISPOSITION_ACCEPTED,
        result_pb2.DISPOSITION_DUPLICATE,
    ]
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert replica.held == 0


async def test_a_result_over_its_limit_fails_the_step(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    said = report(await a.next_given())
    said.result.data.update({"x": "y" * (65 << 10)})
    await a.say(results=[said])
    assert (await replica.ended(run)).state == RUN_FAILED
    assert await replica.states(run) == [FAILED]
    await until(lambda: a.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_INVALID
    assert replica.held == 0


async def test_a_worker_that_never_reads_holds_no_more_than_its_slots(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", slots=3, reads=False)
    for _ in range(10):
        await replica.launch(step("a"))
    assert replica.held == 3
    assert replica.engine.pool.waiting("default", "a") == 7
    await a.cut()
    other = await workers(replica, "a")
    await other.next_given(7)


async def test_a_worker_that_reads_no_answers_is_not_listened_to(
    replica: Replica, workers: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "MAX_BACKLOG", 100)
    a = await workers(replica, "a", reads=False)
    refused = result_pb2.ResultReport(run="x" * 1000)
    said: list[int] = []

    async def flood() -> None:
        while True:
            await a.say(results=[refused] * 500)
            said.append(500)

    flooding = asyncio.create_task(flood())
    session = next(iter(replica.sessions._sessions.values()))
    box = session.outbox
    assert box is not None
    count = -1
    while count != len(said):  # until no more of it is taken
        count = len(said)
        await until(lambda: not replica.engine._tasks)
        for _ in range(200):
            await asyncio.sleep(0)
    assert len(box._acks) < 100 + 500 + 500
    flooding.cancel()


async def test_ticks_do_not_gather() -> None:
    outbox = Outbox()
    for _ in range(1000):
        outbox.tick(worker_pb2.Tick())
    sent = await outbox.next()
    assert sent is not None
    message = worker_service_pb2.WorkResponse.FromString(sent)
    assert message.HasField("tick")
    assert not outbox._first
    assert outbox._tick is None


async def test_messages_stay_below_their_bound_and_lose_nothing() -> None:
    outbox = Outbox()
    for i in range(10):
        given = worker_pb2.Assignment(run=str(i))
        given.context.update({"x": "y" * (600 << 10)})
        outbox.assign(str(i), given.SerializeToString())
    outbox.close(service.errors.ShuttingDown())
    runs: list[str] = []
    while (sent := await outbox.next()) is not None:
        assert len(sent) <= outboxes.MAX_MESSAGE_BYTES
        runs += [given.run for given in worker_service_pb2.WorkResponse.FromString(sent).assignments]
    assert runs == [str(i) for i in range(10)]
