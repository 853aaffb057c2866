"""Drivers as processes: command line, signals, forks."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import pytest

from conveyor.sdk.values import from_struct
from conveyor.v1.result_pb2 import Outcome
from conveyor.v1.worker_pb2 import Drained

PREAMBLE = """
from conveyor.sdk import Driver, Job
driver = Driver("build")
"""
SUBPROCESS = """
@driver.reconcile
async def reconcile(job: Job) -> None:
    await job.subprocess("sh", "-c", "echo $$; exec sleep 600")
driver.run()
"""
LEFT_BEHIND = """
@driver.reconcile
def reconcile(job: Job) -> str:
    job.run_subprocess("sh", "-c", "sleep 600 &")
    if job.attempt == 2:
        raise job.fail("no luck")
    return "published" if job.attempt == 3 else ""
driver.run()
"""
FORK = """
import multiprocessing

def add(queue, number):
    queue.put(number + 1)

@driver.reconcile
def reconcile(job: Job) -> dict:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=add, args=(queue, job.attempt))
    process.start()
    answer = queue.get()
    process.join()
    return {"answer": answer, "exitcode": process.exitcode}
driver.run()
"""
SIMPLE = """
driver.reconcile(lambda job: None)
driver.run()
"""


def write(path, text):
    script = path / "driver.py"
    script.write_text(PREAMBLE + text)
    return str(script)


@asynccontextmanager
async def running(script, *options):
    process = await asyncio.create_subprocess_exec(sys.executable, script, *options, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def run(script, *options, **environment):
    return subprocess.run(
        [sys.executable, script, *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


async def test_a_signal_drains_and_the_process_ends_well(work_server, tmp_path):
    async with work_server() as server, running(write(tmp_path, SIMPLE), "--address", server.address) as process:
        stream = await server.stream()
        stream.welcome(heartbeat=0.05)
        await stream.until(lambda s: s.heartbeats)
        process.send_signal(signal.SIGTERM)
        await stream.until(lambda s: s.drains)
        stream.send(drained=Drained())
        assert await process.wait() == 0


async def test_a_second_signal_ends_it_and_its_subprocesses_at_once(work_server, assignment, tmp_path):
    async with work_server() as server, running(write(tmp_path, SUBPROCESS), "--address", server.address) as process:
        stream = await server.stream()
        stream.welcome()
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.lines)
        child = int(stream.lines[0].text)
        process.send_signal(signal.SIGINT)
        await stream.until(lambda s: s.drains)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 128 + signal.SIGINT
        while is_alive(child):  # noqa: ASYNC110 (another process's end makes no event here)
            await asyncio.sleep(0.01)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to name processes")
async def test_the_result_tells_what_a_subprocess_left_behind(work_server, assignment, tmp_path):
    async with work_server() as server, running(write(tmp_path, LEFT_BEHIND), "--address", server.address):
        stream = await server.stream()
        stream.welcome()
        for attempt in range(1, 4):
            stream.send(assignments=[assignment(attempt=attempt)])
            await stream.until(lambda s, n=attempt: len(s.results) == n)
            stream.ack(stream.results[-1])
        told = [report.result.message.rpartition(" outlived the command and was ended: ") for report in stream.results]
        assert [head for head, *_ in told] == ["1 process", "no luck (1 process", "published (1 process"]
        assert "[1 process outlived the command and was ended: " in stream.lines[0].text


async def test_a_handler_may_fork_while_the_stream_is_open(work_server, assignment, tmp_path):
    async with work_server() as server, running(write(tmp_path, FORK), "--address", server.address):
        stream = await server.stream()
        stream.welcome(heartbeat=0.05)
        for number in range(1, 6):
            stream.send(assignments=[assignment(attempt=number)])
            await stream.until(lambda s, n=number: len(s.results) == n)
            stream.ack(stream.results[-1])
        assert [from_struct(report.result.data) for report in stream.results] == [
            {"answer": number + 1, "exitcode": 0} for number in range(1, 6)
        ]
        assert {report.result.outcome for report in stream.results} == {Outcome.OUTCOME_SUCCEEDED}
        beats = stream.heartbeats
        await stream.until(lambda s: s.heartbeats > beats)


async def test_the_environment_says_where_and_how(work_server, tmp_path, monkeypatch):
    async with work_server() as server:
        monkeypatch.setenv("CONVEYOR_ADDRESS", server.address)
        monkeypatch.setenv("CONVEYOR_NAMESPACE", "team")
        monkeypatch.setenv("CONVEYOR_SLOTS", "7")
        monkeypatch.setenv("CONVEYOR_WORKER_LABELS", "os=linux,zone=a")
        async with running(write(tmp_path, SIMPLE)):
            hello = (await server.stream()).hello
            assert (hello.namespace, hello.slots, hello.labels) == ("team", 7, {"os": "linux", "zone": "a"})
        options = ["-n", "other", "--slots", "2", "--label", "zone=b", "--label", "gpu=1"]
        async with running(write(tmp_path, SIMPLE), *options):
            hello = (await server.stream()).hello
            assert (hello.namespace, hello.slots) == ("other", 2)
            assert hello.labels == {"os": "linux", "zone": "b", "gpu": "1"}


INIT = """
import ctypes, os, sys, time
from conveyor.sdk.init import supervise

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
supervise()
# An orphan that ends: nobody but the first process can collect it.
if os.fork() == 0:
    orphan = os.fork()
    if orphan == 0:
        os.read(0, 1)
        os._exit(0)
    print(orphan, flush=True)
    os._exit(0)
os.wait()
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's subreapers to play process 1")
async def test_process_1_collects_orphans_and_passes_signals_on(tmp_path):
    script = tmp_path / "init.py"
    script.write_text(INIT)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    orphan = int(await process.stdout.readline())
    process.stdin.close()
    while os.path.exists(f"/proc/{orphan}"):  # noqa: ASYNC110, ASYNC240, PTH110 (another process's end makes no event)
        await asyncio.sleep(0.01)
    process.terminate()
    assert await process.wait() == 128 + signal.SIGTERM


def test_help_names_options_and_variables(tmp_path):
    done = run(write(tmp_path, SIMPLE), "--help")
    assert done.returncode == 0
    for word in ("--address", "--namespace", "--slots", "--transport", "--nats", "CONVEYOR_ADDRESS", "127.0.0.1:7460"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        (["--slots", "0"], {}, "from 1 to 10000"),
        (["--slots", "x"], {}, "invalid int value"),
        (["--label", "linux"], {}, "--label has 'linux', which is not KEY=VALUE"),
        ([], {"CONVEYOR_WORKER_LABELS": "linux"}, "CONVEYOR_WORKER_LABELS has 'linux', which is not KEY=VALUE"),
        (["--transport", "pigeon"], {}, "invalid choice"),
        (["--address", "nowhere:"], {}, "is not host:port"),
        ([], {"CONVEYOR_TRANSPORT": "pigeon"}, "pigeon"),
        ([], {"CONVEYOR_TLS_CA": "/nowhere/ca.pem"}, "cannot read the TLS file"),
    ],
)
def test_wrong_settings_are_told_in_a_line(tmp_path, options, environment, text):
    done = run(write(tmp_path, SIMPLE), *options, **environment)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_jetstream_without_its_library_says_what_to_install(tmp_path):
    hide = "import sys; sys.modules['nats'] = None\n"
    done = run(write(tmp_path, hide + SIMPLE), "--transport", "jetstream")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'build: the transport "jetstream" needs nats-py: pip install "conveyor-client[jetstream]"'
    ]
