"""The synchronous client against a real server: its calls, restarts, running loops, and servers that fork workers."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from conveyor.sdk import AlreadyExists, FailedPrecondition, NotFound, SyncClient, WaitTimeout, from_struct, to_struct
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.pipeline_pb2 import Pipeline, RetryPolicy
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run, RunState
from conveyor.v1.schedule_pb2 import Schedule
from tests.support.belt import Site, state, states, step
from tests.support.driver_process import DriverProcess
from tests.support.server import ConveyorServer
from tests.support.wait import LONG, until_sync

Spawn = Callable[..., DriverProcess]


@pytest.fixture
def client(sqlite_site: Site) -> Iterator[SyncClient]:
    """A client of a namespace of its own."""
    with SyncClient(sqlite_site.server.address, namespace=f"t-{secrets.token_hex(4)}") as client:
        yield client


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts drivers as processes of their own."""
    spawned = []

    def start(client: SyncClient, name: str, *behaviour: str) -> DriverProcess:
        environment = {"CONVEYOR_ADDRESS": client.address, "CONVEYOR_NAMESPACE": client.namespace}
        spawned.append(DriverProcess(name, *behaviour, environment=environment, log=tmp_path / f"{name}.log"))
        return spawned[-1]

    yield start
    for process in spawned:
        process.kill()


def set_up(client: SyncClient, *drivers: str) -> None:
    client.definitions.apply(ResourceDefinition(name="app"))
    steps = [step(name, retry=RetryPolicy(max_attempts=1)) for name in drivers]
    client.pipelines.apply(Pipeline(name="release", steps=steps))


def start(client: SyncClient, **spec: object) -> Run:
    name = f"r-{secrets.token_hex(6)}"
    _, run = client.resources.create(Resource(name=name, definition="app", pipeline="release", spec=to_struct(spec)))
    assert run is not None
    return run


def test_a_schedule(client: SyncClient) -> None:
    set_up(client, "nobody")
    resource = start(client).resource
    client.schedules.create(Schedule(name="nightly", definition="app", resource=resource, cron="@daily"))
    assert client.schedules.pause("nightly").paused
    assert not client.schedules.resume("nightly").paused
    run = client.schedules.trigger("nightly")
    assert [each.id for each in client.runs.list(schedule="nightly")] == [run.id]
    with pytest.raises(FailedPrecondition, match="has not ended"):
        client.schedules.trigger("nightly")
    assert client.schedules.delete("nightly").generation == 3


def test_a_run_from_its_start_to_its_end(client: SyncClient, spawn: Spawn) -> None:
    spawn(client, "clone", "ok")
    spawn(client, "build", "flaky", "1")
    set_up(client, "clone", "build")
    run = start(client, n=1)
    seen = [(update.run.state, [each.step for each in update.changed]) for update in client.runs.watch(run.id)]
    assert (seen[0][1], seen[-1][0]) == (["clone", "build"], RunState.RUN_STATE_FAILED)
    failed = client.runs.wait(run.id, timeout=LONG)
    assert states(failed) == {"clone": "SUCCEEDED", "build": "FAILED"}
    assert from_struct(failed.steps[0].result.data) == {"by": "clone"}
    assert [line.text for line in client.logs.read(run.id, follow=True)] == ["attempt 1"]
    assert {each.name for each in client.drivers.list(page_size=1)} == {"clone", "build"}
    again = client.runs.retry(run.id)
    assert again.parent_run == run.id
    client.runs.wait(again.id, timeout=LONG)
    assert {each.id for each in client.runs.list(pipeline="release", page_size=1)} == {run.id, again.id}
    assert client.runs.delete(run.id).id == run.id
    with pytest.raises(NotFound):
        client.runs.get(run.id)


def test_a_run_that_is_cancelled(client: SyncClient, spawn: Spawn) -> None:
    spawn(client, "work", "sleep", "600")
    set_up(client, "work")
    run = start(client)
    with pytest.raises(WaitTimeout, match=f"run {run.id} has not ended within 0.2 s"):
        client.runs.wait(run.id, timeout=0.2)
    with closing(client.runs.watch_all(pipeline="release")) as updates:
        assert next(updates).run.id == run.id
        client.runs.cancel(run.id, "enough")
        ended = next(update.run for update in updates if update.run.state == RunState.RUN_STATE_CANCELLED)
    assert (ended.id, ended.cancel_message) == (run.id, "enough")
    with pytest.raises(FailedPrecondition) as late:
        client.runs.cancel(run.id)
    assert late.value.reason == "RUN_FINISHED"


def test_objects(client: SyncClient) -> None:
    set_up(client, "nobody")
    shop = Resource(name="shop", definition="app", pipeline="release", spec=to_struct({"n": 1}))
    created, run = client.resources.create(shop)
    assert run is not None
    with pytest.raises(AlreadyExists):
        client.resources.create(shop)
    assert client.resources.apply(shop).outcome == ApplyOutcome.APPLY_OUTCOME_UNCHANGED
    shop.spec["n"] = 2
    assert client.resources.update(shop).resource.generation == created.generation + 1
    assert [each.generation for each in client.resources.generations("app", "shop", page_size=1)] == [2, 1]
    assert from_struct(client.resources.get("app", "shop", 1).spec) == {"n": 1}
    assert [each.name for each in client.resources.list("app")] == ["shop"]
    assert client.resources.delete("app", "shop").name == "shop"
    with pytest.raises(NotFound):
        client.resources.get("app", "shop")
    assert client.pipelines.delete("release", validate_only=True).name == "release"
    assert [each.name for each in client.pipelines.list()] == ["release"]
    assert client.server_info().store == "sqlite"


def test_many_threads_start_one_run_by_one_request_id(client: SyncClient) -> None:
    set_up(client, "nobody")
    client.resources.create(Resource(name="shop", definition="app", pipeline="release"))
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda _: client.runs.start("app", "shop", request_id="same").id, range(40)))
    assert len(set(runs)) == 1


def test_everything_goes_on_over_a_restart_of_the_server(sqlite_site: Site, spawn: Spawn, tmp_path: Path) -> None:
    server = ConveyorServer(tmp_path / "server", ["--nats", sqlite_site.nats.url]).start()
    try:
        with SyncClient(server.address) as client, ThreadPoolExecutor(3) as threads:
            spawn(client, "work", "flaky", "0")
            spawn(client, "later", "ok")
            set_up(client, "work", "gate", "later")
            run = start(client)
            watching = threads.submit(lambda: [update.run.state for update in client.runs.watch(run.id)])
            reading = threads.submit(lambda: [line.text for line in client.logs.read(run.id, follow=True)])
            waiting = threads.submit(client.runs.wait, run.id)
            until_sync(lambda: list(client.logs.read(run.id)), "the first line")
            server.kill()
            server.start()
            spawn(client, "gate", "ok")
            assert watching.result(LONG)[-1] == RunState.RUN_STATE_SUCCEEDED
            assert reading.result(LONG) == ["attempt 1"]
            assert state(waiting.result(LONG)) == "SUCCEEDED"
    finally:
        server.kill()


def program(text: str, client: SyncClient) -> subprocess.Popen[str]:
    """Starts a program on the client's server and namespace, as the head of a group of processes."""
    place = {"CONVEYOR_ADDRESS": client.address, "CONVEYOR_NAMESPACE": client.namespace}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text],
        env={**os.environ, **place},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    """Ends a program that has not ended, and all that it forked."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def printed(text: str, client: SyncClient) -> list[str]:
    """What a program prints that ends by itself, without a word on standard error."""
    process = program(text, client)
    try:
        out, err = process.communicate(timeout=LONG)
    finally:
        end(process)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


NOTEBOOK = """
import asyncio
from conveyor.sdk import Client, SyncClient

async def cells():
    with SyncClient() as client:
        run = client.runs.start("app", "shop")
        print(next(client.runs.watch(run.id)).run.id == run.id)
        async with Client() as other:
            print((await other.runs.get(run.id)).id == client.runs.get(run.id).id)
    return run

asyncio.run(cells())
"""


def test_in_a_loop_that_runs_as_in_notebooks(client: SyncClient) -> None:
    set_up(client, "nobody")
    client.resources.create(Resource(name="shop", definition="app", pipeline="release"))
    assert printed(NOTEBOOK, client) == ["True", "True"]


WEB = """
import http.server, os, socket, sys
from conveyor.sdk import SyncClient

client = SyncClient()
listening = socket.create_server(("127.0.0.1", 0))


class App(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        run = client.runs.start("app", "shop")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.getpid()} {client.runs.get(run.id).id}".encode())
        self.server.handled = True

    def log_message(self, *_):
        pass


def work():
    server = http.server.HTTPServer(listening.getsockname(), App, bind_and_activate=False)
    server.socket.close()
    server.socket, server.handled = listening, False
    while not server.handled:
        server.handle_request()
    client.close()
    sys.exit(0)


def worker():
    pid = os.fork()
    if pid == 0:
        work()
    return pid


workers = {worker() for _ in range(3)}
print(listening.getsockname()[1], flush=True)
while True:
    pid, status = os.wait()
    assert status == 0, status
    workers.remove(pid)
    workers.add(worker())
"""


def test_in_web_workers_that_are_forked_and_replaced(client: SyncClient) -> None:
    """The application, and its client, are loaded before the fork; each worker serves one request."""
    set_up(client, "nobody")
    client.resources.create(Resource(name="shop", definition="app", pipeline="release"))
    process = program(WEB, client)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        answers = []
        for _ in range(6):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)) as connection:
                connection.request("POST", "/")
                answers.append(connection.getresponse().read().decode().split())
        assert len({pid for pid, _ in answers}) == 6
        assert {run for _, run in answers} <= {run.id for run in client.runs.list(pipeline="release")}
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=LONG) == ("", "")
        assert process.returncode == -signal.SIGTERM
    finally:
        end(process)


TASKS = """
import multiprocessing, os
from conveyor.sdk import ForkedProcess, SyncClient

client = SyncClient()


def task(number):
    try:
        return client.runs.start("app", "shop", labels={"task": str(number)}).labels["task"]
    except ForkedProcess as error:
        return str(error).partition(":")[0].replace(str(os.getpid()), "CHILD").replace(str(os.getppid()), "PARENT")


def all_tasks():
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=2) as pool:
        return sorted(set(pool.map(task, range(8), chunksize=1)))


if __name__ == "__main__":
    print(*all_tasks())
    print(task(8))
    print(*all_tasks())
    print(task(9))
"""


def test_in_task_workers_that_are_forked_and_replaced(client: SyncClient) -> None:
    """Workers may be forked again and again, until their parent calls itself: they then say so, and it goes on."""
    set_up(client, "nobody")
    client.resources.create(Resource(name="shop", definition="app", pipeline="release"))
    assert printed(TASKS, client) == [
        "0 1 2 3 4 5 6 7",
        "8",
        "process CHILD was forked from process PARENT, which had called Conveyor already, and gRPC does not live on in "
        "a fork",
        "9",
    ]
