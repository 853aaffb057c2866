"""Drivers over the Work stream, against a scripted server on a real socket."""

import asyncio
import logging
import threading
from contextlib import asynccontextmanager

import pytest

from conveyor.sdk import ConfigurationError, Driver, FailedPrecondition, Job
from conveyor.sdk.values import from_struct, to_struct
from conveyor.v1.result_pb2 import Disposition, Outcome
from conveyor.v1.run_pb2 import RunState, StepState
from conveyor.v1.worker_pb2 import Cancellation, Drained, Holding, Limits, StepResult

SUCCEEDED, FAILED, CANCELLED = Outcome.OUTCOME_SUCCEEDED, Outcome.OUTCOME_FAILED, Outcome.OUTCOME_CANCELLED


@asynccontextmanager
async def serving(driver, server, **welcome):
    """A driver that serves, with its first stream welcomed; at the end all is acked and the driver drained."""
    driver.address = server.address
    task = asyncio.create_task(driver.serve())
    stream = await server.stream()
    stream.welcome(**welcome)
    try:
        yield stream
        driver.drain()
        if not stream.ended.is_set():
            await drained(stream)
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def drained(stream):
    """Let a driver go that drains."""
    await stream.until(lambda s: s.drains)
    for report in stream.results:
        stream.ack(report)
    stream.ack_lines()
    stream.send(drained=Drained())


async def one_result(work_server, assignment, handler, **options):
    """What a handler's attempt came to: the result and the lines before it."""
    driver = Driver("build", **options)
    driver.reconcile(handler)
    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        [report] = stream.results
        return report, stream.lines


async def test_an_async_handler_gets_the_job_and_its_dict_becomes_the_result(work_server, assignment):
    driver = Driver("build", definitions=["app"], labels={"zone": "a"}, worker="w1", slots=3, namespace="team")

    @driver.reconcile
    async def reconcile(job: Job) -> dict:
        job.log("building %s", job.spec["repository"])
        return {"wheel": "shop.whl", "size": 3}

    async with work_server() as server, serving(driver, server) as stream:
        hello = stream.hello
        assert (hello.driver, hello.namespace, hello.worker, hello.slots) == ("build", "team", "w1", 3)
        assert (hello.definitions, hello.labels, hello.session, hello.holding) == (["app"], {"zone": "a"}, "", [])
        assert hello.sdk.startswith("conveyor-python/")
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        [report] = stream.results
        assert (report.run, report.step, report.attempt, report.token) == ("run-1", "build", 1, "run-1/build/1")
        assert report.result.outcome == SUCCEEDED
        assert from_struct(report.result.data) == {"wheel": "shop.whl", "size": 3}
        [line] = stream.lines
        assert (line.text, line.seq, line.step) == ("building https://example.org/shop.git", 1, "build")
        assert line.time.seconds


async def test_a_plain_function_runs_in_a_thread(work_server, assignment):
    threads = []
    report, _ = await one_result(work_server, assignment, lambda job: threads.append(threading.current_thread()))
    assert threads != [threading.main_thread()]
    assert report.result.outcome == SUCCEEDED
    assert not report.result.HasField("data")


async def test_the_job_has_everything_that_the_server_sent(work_server, assignment):
    jobs = []
    driver = Driver("build")

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        jobs.append(job)

    given = assignment(
        context=to_struct({"registry": "r.example"}),
        params=to_struct({"fast": True}),
        results={
            "clone": StepResult(
                state=StepState.STEP_STATE_SUCCEEDED, driver="git", message="ok", data=to_struct({"commit": "abc"})
            )
        },
    )
    given.deadline.FromSeconds(1_700_000_000)
    given.run_state = RunState.RUN_STATE_FAILED
    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[given])
        await stream.until(lambda s: s.results)
    [job] = jobs
    assert job.spec == {"repository": "https://example.org/shop.git"}
    assert job.context == {"registry": "r.example"}
    assert job.params == {"fast": True}
    clone = job.results["clone"]
    assert (clone.state, clone.driver, clone.message, clone.data) == ("SUCCEEDED", "git", "ok", {"commit": "abc"})
    assert (job.namespace, job.run, job.step, job.attempt, job.max_attempts) == ("default", "run-1", "build", 1, 3)
    assert (job.driver, job.pipeline, job.run_state, job.resource.name) == ("compile", "release", "FAILED", "shop")
    assert job.deadline.isoformat() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    ("answer", "message", "data"),
    [
        (None, "", None),
        ("built", "built", None),
        ({}, "", {}),
        ({"n": 1}, "", {"n": 1}),
    ],
)
async def test_what_a_handler_may_return(work_server, assignment, answer, message, data):
    async def handler(job):
        return answer

    report, _ = await one_result(work_server, assignment, handler)
    result = report.result
    assert (result.outcome, result.message) == (SUCCEEDED, message)
    assert (from_struct(result.data) if result.HasField("data") else None) == data


async def test_success_may_have_a_message_and_data(work_server, assignment):
    report, _ = await one_result(work_server, assignment, lambda job: job.succeed("built", {"n": 1}))
    assert report.result.message == "built"
    assert from_struct(report.result.data) == {"n": 1}


async def test_fail_says_why_with_data_and_whether_to_retry(work_server, assignment):
    async def handler(job):
        raise job.fail("no space", {"free": 0}, retryable=False)

    report, _ = await one_result(work_server, assignment, handler)
    result = report.result
    assert (result.outcome, result.message, result.retryable) == (FAILED, "no space", False)
    assert from_struct(result.data) == {"free": 0}


@pytest.mark.parametrize("in_thread", [True, False])
async def test_any_exception_fails_with_its_text_and_its_traceback_is_logged(work_server, assignment, in_thread):
    def sync(job):
        raise ZeroDivisionError("cannot divide")

    async def handler(job):
        sync(job)

    report, lines = await one_result(work_server, assignment, sync if in_thread else handler)
    assert report.result.outcome == FAILED
    assert report.result.message == "ZeroDivisionError: cannot divide"
    assert not report.result.HasField("retryable")
    text = [line.text for line in lines]
    assert text[0] == "Traceback (most recent call last):"
    assert text[-1] == "ZeroDivisionError: cannot divide"


async def test_leaving_the_process_is_a_failure_of_the_job_alone(work_server, assignment):
    def handler(job):
        raise SystemExit(3)

    report, _ = await one_result(work_server, assignment, handler)
    assert report.result.message == "SystemExit: 3"


@pytest.mark.parametrize("data", [{"n": float("nan")}, {"n": 2**53 + 1}, {"when": object()}])
async def test_data_that_would_change_fails_with_its_path(work_server, assignment, data):
    report, _ = await one_result(work_server, assignment, lambda job: data)
    assert report.result.outcome == FAILED
    assert report.result.message.startswith("$.")
    assert report.result.retryable is False


async def test_other_types_are_refused(work_server, assignment):
    report, _ = await one_result(work_server, assignment, lambda job: 3)
    assert "the handler returned int" in report.result.message


async def test_a_long_message_is_cut(work_server, assignment):
    report, _ = await one_result(work_server, assignment, lambda job: "ä" * 10_000)
    assert len(report.result.message.encode()) <= 4096
    assert report.result.message.endswith("ä…")


async def test_data_that_no_message_can_carry_fails_and_the_driver_lives_on(work_server, assignment):
    sizes = {"run-1": 5_000_000, "run-2": 10}
    driver = Driver("build")
    driver.reconcile(lambda job: {"output": "x" * sizes[job.run]})
    limits = Limits(message_bytes=4 << 20, result_data_bytes=64 << 10)
    async with work_server() as server, serving(driver, server, limits=limits) as stream:
        stream.send(assignments=[assignment(), assignment("run-2")])
        await stream.until(lambda s: len(s.results) == 2)
        big, small = (report.result for report in stream.results)
        assert big.outcome == FAILED
        assert "the limit is 65536" in big.message
        assert small.outcome == SUCCEEDED


async def test_an_async_handler_is_cancelled_and_confirms(work_server, assignment):
    started, cleaned = asyncio.Event(), asyncio.Event()
    driver = Driver("build")

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert job.cancelled
            assert job.cancel_message == "run cancelled"
            cleaned.set()

    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await started.wait()
        stream.send(cancellations=[Cancellation(run="run-1", step="build", attempt=1, message="run cancelled")])
        await stream.until(lambda s: s.results)
        assert cleaned.is_set()
        assert (stream.results[0].result.outcome, stream.results[0].result.message) == (CANCELLED, "run cancelled")


async def test_a_handler_in_a_thread_learns_of_its_cancellation(work_server, assignment):
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    driver = Driver("build")

    @driver.reconcile
    def reconcile(job: Job) -> None:
        job.raise_if_cancelled()
        loop.call_soon_threadsafe(started.set)
        job.cancelled_event.wait()
        job.raise_if_cancelled()
        raise AssertionError

    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await started.wait()
        stream.send(cancellations=[Cancellation(run="run-1", step="build", attempt=1)])
        await stream.until(lambda s: s.results)
        assert stream.results[0].result.outcome == CANCELLED


async def test_a_cancellation_of_what_is_not_there_does_nothing(work_server, assignment):
    driver = Driver("build")
    driver.reconcile(lambda job: None)
    async with work_server() as server, serving(driver, server) as stream:
        stream.send(cancellations=[Cancellation(run="run-9", step="build", attempt=1)])
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        assert stream.results[0].result.outcome == SUCCEEDED


async def test_as_many_jobs_run_at_once_as_there_are_slots(work_server, assignment):
    together = threading.Barrier(4)
    driver = Driver("build", slots=4)
    driver.reconcile(lambda job: together.wait() and None)
    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment(f"run-{number}") for number in range(4)])
        await stream.until(lambda s: len(s.results) == 4)


async def test_what_is_not_acked_is_held_and_sent_again_on_the_next_stream(work_server, assignment):
    release = asyncio.Event()
    driver = Driver("build", slots=2)

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        job.log("a line")
        if job.run == "run-2":
            await release.wait()

    async with work_server() as server:
        driver.address = server.address
        task = asyncio.create_task(driver.serve())
        first = await server.stream()
        first.welcome("s1")
        first.send(assignments=[assignment("run-1"), assignment("run-2")])
        await first.until(lambda s: s.results and len(s.lines) == 2)
        first.close()
        second = await server.stream()
        assert second.hello.session == "s1"
        assert {(each.run, each.token) for each in second.hello.holding} == {
            ("run-1", "run-1/build/1"),
            ("run-2", "run-2/build/1"),
        }
        second.welcome("s1")
        await second.until(lambda s: s.results and len(s.lines) == 2)
        assert second.results[0].run == "run-1"
        assert {line.seq for line in second.lines} == {1}
        second.ack(second.results[0])
        second.ack_lines()
        release.set()
        await second.until(lambda s: len(s.results) == 2)
        second.ack(second.results[1])
        second.close()
        third = await server.stream()
        assert not third.hello.holding
        third.welcome("s1", heartbeat=0.05)
        await third.until(lambda s: s.heartbeats)
        driver.drain()
        await drained(third)
        await task
        assert not third.results
        assert not third.lines


async def test_what_the_server_gave_up_is_stopped_and_not_reported(work_server, assignment):
    stopped = asyncio.Event()
    started = asyncio.Event()
    driver = Driver("build", slots=2)

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        if job.run == "run-2":
            return
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with work_server() as server:
        driver.address = server.address
        task = asyncio.create_task(driver.serve())
        first = await server.stream()
        first.welcome("s1")
        first.send(assignments=[assignment("run-1"), assignment("run-2")])
        await started.wait()
        await first.until(lambda s: s.results)
        first.close()
        second = await server.stream()
        second.welcome("s2", revoked=[Holding(run=run, step="build", attempt=1) for run in ("run-1", "run-2")])
        await stopped.wait()
        second.send(assignments=[assignment("run-2", attempt=2)])
        await second.until(lambda s: s.results)
        driver.drain()
        await drained(second)
        await task
        assert [(report.run, report.attempt) for report in second.results] == [("run-2", 2)]


async def test_an_assignment_that_comes_twice_is_done_once(work_server, assignment):
    runs = []
    driver = Driver("build", slots=2)
    driver.reconcile(lambda job: runs.append(job.attempt))
    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        stream.send(assignments=[assignment(), assignment(attempt=2)])
        await stream.until(lambda s: len(s.results) == 2)
    assert runs == [1, 2]


async def test_the_same_attempt_under_a_new_token_replaces_the_old_one(work_server, assignment):
    started = asyncio.Queue()
    driver = Driver("build", slots=2)

    @driver.reconcile
    async def reconcile(job: Job) -> str:
        started.put_nowait(job)
        if job.assignment.token == "new":
            return "new"
        await asyncio.Event().wait()
        raise AssertionError

    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        old = await started.get()
        again = assignment()
        again.token = "new"
        stream.send(assignments=[again])
        await stream.until(lambda s: s.results)
        assert old.cancelled
        assert [report.token for report in stream.results] == ["new"]


async def test_heartbeats_go_out_and_a_silent_server_is_left(work_server):
    driver = Driver("build")
    driver.reconcile(lambda job: None)
    async with work_server() as server:
        driver.address = server.address
        task = asyncio.create_task(driver.serve())
        first = await server.stream()
        first.welcome("s1", heartbeat=0.05, ttl=0.3)
        await first.until(lambda s: s.heartbeats >= 2)
        second = await server.stream()
        assert second.hello.session == "s1"
        await first.ended.wait()
        second.welcome("s1", heartbeat=0.05)
        await second.until(lambda s: s.heartbeats)
        driver.drain()
        await drained(second)
        await task


async def test_results_wait_for_the_lines_before_them(work_server, assignment):
    driver = Driver("build")

    @driver.reconcile
    def reconcile(job: Job) -> None:
        for _ in range(5000):
            job.log("x" * 1000)

    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        assert [line.seq for line in stream.lines] == list(range(1, 5001))
        assert all(request.ByteSize() < 3_000_000 for request in stream.requests)


async def test_no_message_is_larger_than_the_server_takes(work_server, assignment):
    driver = Driver("build", slots=4)

    @driver.reconcile
    def reconcile(job: Job) -> dict:
        for _ in range(1000):
            job.log("荷" * 1000)
        return {"output": "x" * 3_500_000}

    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment(f"run-{number}") for number in range(4)])
        await stream.until(lambda s: len(s.results) == 4)
        assert len(stream.lines) == 4000
        assert max(request.ByteSize() for request in stream.requests) < 4 << 20


async def test_a_drained_driver_ends_what_runs_and_takes_no_more(work_server, assignment):
    release, started = asyncio.Event(), asyncio.Event()
    driver = Driver("build")

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        started.set()
        await release.wait()

    async with work_server() as server:
        driver.address = server.address
        task = asyncio.create_task(driver.serve())
        stream = await server.stream()
        stream.welcome()
        stream.send(assignments=[assignment()])
        await started.wait()
        driver.drain()
        await stream.until(lambda s: s.drains == 1)
        stream.send(drained=Drained())
        release.set()
        await stream.until(lambda s: s.results)
        assert not task.done()
        stream.ack(stream.results[0])
        await task


async def test_a_drain_may_have_its_limit(work_server, assignment):
    started, stopped = asyncio.Event(), asyncio.Event()
    driver = Driver("build", drain_timeout=0.05)

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with work_server() as server:
        driver.address = server.address
        task = asyncio.create_task(driver.serve())
        stream = await server.stream()
        stream.welcome()
        stream.send(assignments=[assignment()])
        await started.wait()
        driver.drain()
        await task
        assert stopped.is_set()
        await stream.ended.wait()
        assert not stream.results


async def test_a_driver_drains_also_while_nobody_is_there():
    driver = Driver("build", address="127.0.0.1:1")
    driver.reconcile(lambda job: None)
    task = asyncio.create_task(driver.serve())
    await asyncio.sleep(0)
    driver.drain()
    await task


async def test_a_server_that_refuses_the_worker_ends_it(serve, refuse):
    import grpc
    from google.rpc import error_details_pb2

    from conveyor.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

    class Refusing(WorkerServiceServicer):
        async def Work(self, request_iterator, context):  # noqa: N802
            info = error_details_pb2.ErrorInfo(reason="ERROR_REASON_PROTOCOL_VIOLATION", domain="conveyor")
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "slots is 0", info)
            yield

    driver = Driver("build")
    driver.reconcile(lambda job: None)
    async with serve(lambda server: add_WorkerServiceServicer_to_server(Refusing(), server)) as address:
        driver.address = address
        with pytest.raises(FailedPrecondition, match="slots is 0"):
            await driver.serve()


async def test_a_server_that_fails_is_tried_again(serve, refuse):
    import grpc
    from google.rpc import error_details_pb2

    from conveyor.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

    calls = 0
    again = asyncio.Event()

    class Failing(WorkerServiceServicer):
        async def Work(self, request_iterator, context):  # noqa: N802
            nonlocal calls
            calls += 1
            if calls > 1:
                again.set()
            info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain="conveyor")
            await refuse(context, grpc.StatusCode.INTERNAL, "something went wrong; it is in the log as 1a2b", info)
            yield

    driver = Driver("build")
    driver.reconcile(lambda job: None)
    async with serve(lambda server: add_WorkerServiceServicer_to_server(Failing(), server)) as address:
        driver.address = address
        task = asyncio.create_task(driver.serve())
        await again.wait()
        assert not task.done()
        driver.drain()
        await task


async def test_a_result_that_does_not_count_is_told_to_the_operator(work_server, assignment, caplog):
    driver = Driver("build")
    driver.reconcile(lambda job: None)
    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        stream.ack(stream.results[0], Disposition.DISPOSITION_STALE_ATTEMPT)
    assert "the result of run-1/build, attempt 1, does not count: STALE_ATTEMPT" in caplog.text


async def test_records_of_logging_go_to_the_log_of_the_job_that_makes_them(work_server, assignment):
    logger = logging.getLogger("some.library")
    driver = Driver("build", slots=2)

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        job.logger.warning("careful, %s", job.run)
        logger.info("from %s", job.run)
        await asyncio.to_thread(logger.info, "from a thread of %s", job.run)

    with driver.capture_logging():
        async with work_server() as server, serving(driver, server) as stream:
            stream.send(assignments=[assignment("run-1"), assignment("run-2")])
            await stream.until(lambda s: len(s.results) == 2)
            for run in ("run-1", "run-2"):
                assert [line.text for line in stream.lines if line.run == run] == [
                    f"WARNING careful, {run}",
                    f"INFO from {run}",
                    f"INFO from a thread of {run}",
                ]
        logger.info("outside of any job")


def test_a_driver_has_one_handler():
    driver = Driver("build")
    driver.reconcile(lambda job: None)
    with pytest.raises(ConfigurationError, match="one driver, one handler"):
        driver.reconcile(lambda job: None)


async def test_settings_are_checked_before_anything_is_sent(monkeypatch):
    with pytest.raises(ConfigurationError, match="no handler"):
        await Driver("build").serve()
    with pytest.raises(ConfigurationError, match="a list of names"):
        Driver("build", definitions="app")
    driver = Driver("build", slots=0)
    driver.reconcile(lambda job: None)
    with pytest.raises(ConfigurationError, match="from 1 to 10000"):
        await driver.serve()
    driver.slots = None
    monkeypatch.setenv("CONVEYOR_SLOTS", "many")
    with pytest.raises(ConfigurationError, match="CONVEYOR_SLOTS"):
        await driver.serve()
    driver.slots, driver.transport = 1, "pigeon"
    with pytest.raises(ConfigurationError, match="pigeon"):
        await driver.serve()
