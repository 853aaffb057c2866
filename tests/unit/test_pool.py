"""The pool: which worker gets which of the steps that wait."""

from __future__ import annotations

import random

import pytest

from conveyor.core.selectors import ANY, Selector, compile_selector, fulfils
from conveyor.engine import workers
from conveyor.engine.workers import Held, Outbox, Pool, Waiter, Worker
from conveyor.v1 import worker_pb2
from conveyor.v1.pipeline_pb2 import LabelSelector

ARM = compile_selector(LabelSelector(match_labels={"os": "arm"}))
AMD = compile_selector(LabelSelector(match_labels={"os": "amd"}))


class Open(Outbox):
    """A stream that takes everything."""

    def assign(self, token: str, assignment: bytes) -> None:
        """Nothing."""

    def stop(self, cancellation: worker_pb2.Cancellation) -> None:
        """Nothing."""


def add(pool: Pool, name: str, *, slots: int = 1, definitions: tuple[str, ...] = (), **labels: str) -> Worker:
    worker = Worker("n", "d", name, name, slots, frozenset(definitions), labels, outbox=Open())
    pool.add(worker)
    return worker


def wait(pool: Pool, run: str, selector: Selector = ANY, *, definition: str = "app", since: int = 0) -> None:
    pool.wait(Waiter("n", "d", definition, run, 0, selector=selector), since)


def pump(pool: Pool) -> list[tuple[str, str]]:
    """Gives out what can be: runs and their workers."""
    given = []
    while (match := pool.match("n", "d")) is not None:
        waiter, worker = match
        pool.hold(worker, waiter.run, Held("n", waiter.run, 0))
        given.append((waiter.run, worker.session))
    return given


def test_a_row_for_others_keeps_nobody_back() -> None:
    pool = Pool()
    for i in range(100):
        wait(pool, f"arm-{i:02}", ARM, since=i)
    wait(pool, "amd", AMD, since=1000)
    amd = add(pool, "amd", os="amd")
    assert pump(pool) == [("amd", "amd")]
    add(pool, "arm", os="arm", slots=2)
    assert pump(pool) == [("arm-00", "arm"), ("arm-01", "arm")]
    pool.release("amd")
    assert pump(pool) == []
    assert pool.reserve("n", "d", "app") is amd
    assert pool.reserve("n", "d", "app", False, AMD) is amd
    assert pool.reserve("n", "d", "app", False, ARM) is None


def test_a_worker_gets_what_has_waited_longest_of_all_that_it_takes() -> None:
    pool = Pool()
    wait(pool, "any", since=2)
    wait(pool, "arm", ARM, since=1)
    wait(pool, "amd", AMD, since=0)
    wait(pool, "lib", definition="lib", since=3)
    add(pool, "both", os="arm", slots=9)
    assert [run for run, _ in pump(pool)] == ["arm", "any", "lib"]
    assert pool.ahead("n", "d", "amd") == {0: 0}


def test_a_step_that_comes_when_workers_are_free_finds_one() -> None:
    pool = Pool()
    add(pool, "amd", os="amd", slots=2)
    assert pump(pool) == []
    wait(pool, "arm", ARM)
    assert pump(pool) == []
    wait(pool, "a", AMD)
    wait(pool, "b", AMD)
    assert [run for run, _ in pump(pool)] == ["a", "b"]


def test_other_labels_count_from_the_next_connection_on() -> None:
    pool = Pool()
    worker = add(pool, "w", os="amd")
    wait(pool, "arm", ARM)
    assert pump(pool) == []
    worker.outbox = None
    worker.labels = {"os": "arm"}
    assert pump(pool) == []
    worker.outbox = Open()
    pool.freed(worker)
    assert pump(pool) == [("arm", "w")]


def test_who_left_or_drains_is_passed_over() -> None:
    pool = Pool()
    gone, draining, there = (add(pool, name, os="arm") for name in ("gone", "draining", "there"))
    for i in range(2):
        wait(pool, str(i), ARM)
    pool.remove(gone)
    draining.draining = True
    assert pump(pool) == [("0", "there")]
    assert there.held
    pool.remove(there)
    pool.remove(draining)
    assert pool.waiting("n", "d") == 1


def test_idle_workers_and_steps_that_are_not_for_them_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(labels: dict[str, str], selector: Selector) -> bool:
        nonlocal looks
        looks += 1
        return fulfils(labels, selector)

    pool = Pool()
    for i in range(200):
        add(pool, f"idle-{i}", os="amd")
    busy = add(pool, "busy", os="arm")
    for i in range(500):
        wait(pool, f"{i:03}", ARM, since=i)
    pump(pool)
    monkeypatch.setattr(workers, "fulfils", counted)
    for i in range(100):
        pool.release(f"{i:03}")
        assert pump(pool) == [(f"{i + 1:03}", "busy")]
    assert busy.held
    assert looks <= 300


def test_whatever_comes_and_goes_nobody_is_free_for_a_step_that_waits() -> None:
    chance = random.Random(7)
    pool = Pool()
    selectors = [ANY, ARM, AMD]
    known: dict[str, Worker] = {}
    for i in range(3000):
        action = chance.randrange(6)
        if action == 0 and len(known) < 8:
            known[str(i)] = add(pool, str(i), slots=chance.randint(1, 3), os=chance.choice(["arm", "amd", "mips"]))
        elif action == 1 and known and chance.random() < 0.3:
            pool.remove(known.pop(chance.choice(list(known))))
        elif action in (2, 3):
            wait(pool, f"run-{i}", chance.choice(selectors), since=chance.randrange(50))
        elif action == 4 and known:
            worker = known[chance.choice(list(known))]
            for token in list(worker.held)[: chance.randint(0, 2)]:
                pool.release(token)
        elif action == 5 and known:
            worker = known[chance.choice(list(known))]
            worker.labels = {"os": chance.choice(["arm", "amd"])}
            pool.freed(worker)
        pump(pool)
        for waiter in pool.waiters("n", "d"):
            assert not any(worker.free and worker.takes(*waiter.row) for worker in known.values())
