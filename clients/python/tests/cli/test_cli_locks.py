"""`conveyor lock`, and what else says something of locks."""

import json
from collections.abc import Callable
from typing import Any

from conveyor.v1.pipeline_pb2 import Lock, Pipeline, Step
from conveyor.v1.run_pb2 import LockHolder, LockWait, RunState
from conveyor.v1.run_service_pb2 import HeldLock

Conveyor = Callable[..., Any]


def hold(server: Any) -> None:
    """Some locks are held."""
    deploy, whole = LockHolder(run="r1", step="deploy"), LockHolder(run="r2")
    server.locks = [
        HeldLock(key="deploy", holders=[deploy, whole], waiting=[LockHolder(run="r3", step="a")], waiting_count=102),
        HeldLock(key="two\nlines", holders=[whole]),
    ]


def test_a_list_of_locks(conveyor: Conveyor, server: Any) -> None:
    done = conveyor("lock", "list")
    assert (done.code, done.out, done.err) == (0, "", "no locks\n")
    hold(server)
    assert conveyor("lock", "list").out.splitlines() == [
        "KEY        HELD BY                           WAITING",
        "deploy     step deploy of run r1 and 1 more  102",
        "two lines  run r2                            0",
    ]
    assert conveyor("lock", "list", "-o", "name").out.splitlines()[0] == "lock/deploy"
    first, _ = json.loads(conveyor("lock", "list", "-o", "json").out)
    assert (first["kind"], first["key"], first["waitingCount"]) == ("HeldLock", "deploy", 102)


def test_one_lock(conveyor: Conveyor, server: Any) -> None:
    hold(server)
    assert conveyor("lock", "get", "deploy").out == (
        "Lock:    deploy\n"
        "Holders: 2\n"
        "Waiting: 102\n"
        "\n"
        "PLACE  RUN  STEP\n"
        "holds  r1   deploy\n"
        "holds  r2\n"
        "1      r3   a\n"
        "… and 101 more\n"
    )
    done = conveyor("lock", "get", "nope")
    assert (done.code, done.err) == (1, "error: nobody holds a lock nope\n")


def test_a_run_that_waits_for_its_lock(conveyor: Conveyor, server: Any, make_run: Any) -> None:
    run = make_run(state=RunState.RUN_STATE_PENDING)
    run.lock = "deploy"
    run.wait.lock.CopyFrom(LockWait(key="deploy", limit=1, holders=[LockHolder(run="r1")], ahead=3))
    server.runs[run.id] = run
    lines = conveyor("run", "get", run.id).out.splitlines()
    assert "Waits for: lock deploy, held by run r1, 3 ahead" in lines
    assert "Lock:      deploy" in lines


def test_the_lock_of_a_pipeline(conveyor: Conveyor, server: Any) -> None:
    steps = [Step(id="a", driver="b", lock=Lock(key="x ${{ run.id }}", limit=3)), Step(id="c", driver="b")]
    pipeline = Pipeline(name="p", lock=Lock(key="db", limit=2), steps=steps)
    server.objects["pipeline", "p"] = pipeline
    lines = conveyor("pipeline", "get", "p").out.splitlines()
    assert "Lock:       db (2 at a time)" in lines
    assert lines[-3:] == ["STEP  DRIVER  LOCK", "a     b       x ${{ run.id }} (3 at a time)", "c     b"]
