"""What only the synchronous client promises: threads, no loop of its own, forks. The rest it shares with the other."""
# ruff: noqa: N802 (servicers have the names of their rpcs)

import asyncio
import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType

import grpc
import pytest

from conveyor.sdk import Client, ClientClosed, SyncClient
from conveyor.v1.run_pb2 import Run, RunSnapshot, RunState, SnapshotEnd
from conveyor.v1.run_service_pb2 import GetRunResponse, WatchRunResponse
from conveyor.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server


class Runs(RunServiceServicer):
    """Runs that never end; of each the first answer is lost."""

    def __init__(self):
        self.known = set()
        self.watched = asyncio.Event()
        self.left = asyncio.Event()

    def register(self, server):
        add_RunServiceServicer_to_server(self, server)

    async def GetRun(self, request, context):
        if request.id not in self.known:
            self.known.add(request.id)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away for a moment")
        return GetRunResponse(run=Run(id=request.id))

    async def WatchRun(self, request, context):
        yield WatchRunResponse(snapshot=RunSnapshot(runs=[Run(id=request.id, state=RunState.RUN_STATE_RUNNING)]))
        yield WatchRunResponse(snapshot_end=SnapshotEnd(), cursor="c1")
        self.watched.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


def public(part):
    """The public methods of a part of a client, with their parameters, and its own parts."""
    found = {}
    for name in (name for name in dir(part) if not name.startswith("_")):
        value = getattr(part, name)
        if isinstance(getattr(type(part), name, None), FunctionType):
            found[name] = [str(each) for each in inspect.signature(value).parameters.values()]
        elif type(value).__module__.startswith("conveyor.sdk."):
            found[name] = public(value)
    return found


def test_both_clients_have_the_same_methods():
    methods = public(SyncClient("localhost"))
    assert methods == public(Client("localhost"))
    looking, ending = {"children", "get", "list", "locks", "watch", "watch_all", "wait"}, {"cancel", "delete"}
    assert looking | ending | {"start", "retry", "decide", "approve", "reject"} == set(methods["runs"])
    assert not inspect.iscoroutinefunction(SyncClient.server_info)


async def test_one_client_serves_many_threads(serve):
    def busy(client, number):
        return [client.runs.get(f"r{number}-{each}").id for each in range(20)]

    async with serve(Runs().register) as address, serve(Runs().register) as other:
        with ThreadPoolExecutor(8) as threads, SyncClient([address, other]) as client:
            loop = asyncio.get_running_loop()
            found = await asyncio.gather(*(loop.run_in_executor(threads, busy, client, n) for n in range(8)))
    assert found == [[f"r{number}-{each}" for each in range(20)] for number in range(8)]


async def test_closing_ends_what_other_threads_do(serve):
    server = Runs()
    async with serve(server.register) as address:
        client = SyncClient(address)
        waiting = asyncio.create_task(asyncio.to_thread(client.runs.wait, "r1"))
        await server.watched.wait()
        await asyncio.to_thread(client.close)
        with pytest.raises(ClientClosed):
            await waiting
        await server.left.wait()


async def test_a_watch_that_is_dropped_is_ended(serve):
    server = Runs()
    async with serve(server.register) as address:
        with SyncClient(address) as client:
            watch = client.runs.watch("r1")
            assert (await asyncio.to_thread(next, watch)).run.id == "r1"
            await server.watched.wait()
            del watch
            await server.left.wait()


PARENT = """
import multiprocessing, os, signal, sys, threading
from conveyor.sdk import ForkedProcess, SyncClient

client = SyncClient(sys.argv[1])


parent = os.getpid()


def in_child(body):
    pid = os.fork()
    if pid == 0:
        body()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limited():
    if os.getpid() != parent:
        signal.alarm(60)  # a hang, which all of this is about, ends the process


def call():
    limited()
    assert client.runs.get("r1").id == "r1"


def refused():
    limited()
    for each in (client, SyncClient(sys.argv[1])):
        try:
            each.runs.get("r1")
        except ForkedProcess as error:
            assert f"process {os.getpid()} was forked from process {os.getppid()}" in str(error), error
        else:
            raise AssertionError("nothing was raised")
        each.close()


def busy():
    while True:
        client.runs.get("r1")
"""


async def run(script, address):
    """Runs a program that forks; the processes of tests have threads that would be lost."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PARENT + script, address]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_client_from_before_a_fork_works_in_all_children(serve):
    async with serve(Runs().register) as address:
        await run(
            """
assert [in_child(call) for _ in range(3)] == [0, 0, 0]
call()
""",
            address,
        )


async def test_a_child_of_a_process_that_has_called_is_told_so_and_ends(serve):
    async with serve(Runs().register) as address:
        await run(
            """
call()
watch = client.runs.watch("r1")
next(watch)
for _ in range(2):
    threading.Thread(target=busy, daemon=True).start()


def read_on():
    limited()
    try:
        next(watch)
    except ForkedProcess:
        refused()


def abandon():
    limited()
    watch.close()
    refused()


for _ in range(2):
    assert in_child(refused) == 0
    assert in_child(read_on) == 0
    assert in_child(abandon) == 0
call()
os._exit(0)  # the threads go on
""",
            address,
        )


async def test_multiprocessing(serve):
    async with serve(Runs().register) as address:
        await run(
            """
fork = multiprocessing.get_context("fork")
for target in (call, refused):
    process = fork.Process(target=target)
    process.start()
    process.join()
    assert process.exitcode == 0, target
    call()
""",
            address,
        )
