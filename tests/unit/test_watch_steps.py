"""What a change tells watchers of the instances of a matrix."""

from __future__ import annotations

from conveyor.core.matrix import instance_id
from conveyor.sdk import from_struct, to_struct
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Change, Changes
from conveyor.v1 import pipeline_pb2, run_pb2
from conveyor.watch.feed import RunDelta, decode
from conveyor.watch.steps import step_runs
from conveyor.watch.subscription import _newest
from tests.support.core import PENDING, QUEUED, RUNNING, SKIPPED, SUCCEEDED

PIPELINE = pipeline_pb2.Pipeline(
    steps=[pipeline_pb2.Step(id=name, driver=f"d-{name}") for name in ("test", "more", "after")]
)


def values(n: int) -> bytes:
    return to_struct({"n": n}).SerializeToString()


def matrix(name: str, first: int, count: int, state: int, ended: int = 0) -> storage_pb2.StepRecord:
    """The record of a step whose matrix was expanded in the first microsecond."""
    return storage_pb2.StepRecord(
        step=name,
        state=run_pb2.StepState.ValueType(state),
        queue_time=1,
        end_time=ended,
        first_instance=first,
        instances=[values(n) for n in range(count)],
    )


def instance(name: str, place: int, state: int) -> storage_pb2.StepRecord:
    return storage_pb2.StepRecord(
        step=instance_id(name, place),
        matrix_step=name,
        matrix=values(place),
        state=run_pb2.StepState.ValueType(state),
        queue_time=1,
    )


def delta(states: list[int], *records: storage_pb2.StepRecord) -> RunDelta:
    """What one revision did to a run, as the store tells it."""
    head = storage_pb2.RunHead(namespace="n", id="r", step_states=bytes(states), step_reasons=bytes(len(states)))
    changes = [Change(keys.head("n", "r"), head.SerializeToString(), None, 2)]
    changes += [Change(keys.step("n", "r", each.step), each.SerializeToString(), None, 2) for each in records]
    (found,) = decode(Changes(2, tuple(changes))).runs.values()
    return found


def told(of: RunDelta) -> list[tuple[str, int]]:
    """The steps that watchers are told of, with their states."""
    assert of.head is not None
    return [(each.step, each.state) for each in step_runs(PIPELINE, of.head, of.steps, of.expanded)]


def test_an_expansion_tells_of_all_instances_in_their_order() -> None:
    states = [RUNNING, RUNNING, PENDING, QUEUED, PENDING, QUEUED]
    change = delta(states, instance("more", 0, QUEUED), matrix("test", 5, 1, RUNNING), matrix("more", 3, 2, RUNNING))
    assert told(change) == [
        ("test", RUNNING),
        ("more", RUNNING),
        ("more[0]", QUEUED),
        ("more[1]", PENDING),
        ("test[0]", QUEUED),
    ]
    assert change.head is not None
    shown = list(step_runs(PIPELINE, change.head, change.steps, change.expanded))
    assert [from_struct(each.matrix) for each in shown if each.matrix_step] == [{"n": 0}, {"n": 1}, {"n": 0}]
    assert {each.driver for each in shown} == {"d-test", "d-more"}


def test_later_changes_tell_of_what_changed() -> None:
    states = [RUNNING, PENDING, PENDING, SUCCEEDED, QUEUED]
    assert told(delta(states, instance("test", 0, SUCCEEDED))) == [("test[0]", SUCCEEDED)]
    states = [SUCCEEDED, PENDING, PENDING, SUCCEEDED, SUCCEEDED]
    change = delta(states, matrix("test", 3, 2, SUCCEEDED, ended=7), instance("test", 1, SUCCEEDED))
    assert told(change) == [("test", SUCCEEDED), ("test[1]", SUCCEEDED)]


def test_an_expansion_that_ends_at_once() -> None:
    states = [SKIPPED, PENDING, PENDING, SKIPPED, SKIPPED]
    change = delta(states, matrix("test", 3, 2, SKIPPED, ended=1))
    assert told(change) == [("test", SKIPPED), ("test[0]", SKIPPED), ("test[1]", SKIPPED)]


def test_one_who_lags_behind_is_told_of_all_too() -> None:
    begun = delta([RUNNING, PENDING, PENDING, QUEUED, PENDING], matrix("test", 3, 2, RUNNING))
    ended = delta([SUCCEEDED, PENDING, PENDING, SUCCEEDED, SKIPPED], matrix("test", 3, 2, SUCCEEDED, ended=7))
    assert told(_newest(begun, ended)) == [("test", SUCCEEDED), ("test[0]", SUCCEEDED), ("test[1]", SKIPPED)]


def test_records_that_make_no_sense_are_passed_over() -> None:
    change = delta([RUNNING, PENDING, PENDING], matrix("test", 3, 2, RUNNING), instance("gone", 0, QUEUED))
    assert told(change) == [("test", RUNNING)]
