"""The instances of a matrix on a terminal."""

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.cli.instances import as_told, in_order, label
from conveyor.v1.run_pb2 import StepRun

ENDED = Timestamp(seconds=1)


def instance(name: str, **values: object) -> StepRun:
    """An instance of the step before the bracket."""
    struct = Struct()
    struct.update(values)
    return StepRun(step=name, matrix_step=name.partition("[")[0], matrix=struct)


def names(steps: list[StepRun]) -> list[str]:
    return [step.step for step in steps]


def test_values_stand_behind_the_id_in_the_order_of_their_names() -> None:
    made = instance("test[0]", os="linux", n=3, half=0.5, on=True, none=None, map={"a": [1, "ü"]}, long="x" * 50)
    assert label(made) == f'test[0] half=0.5 long={"x" * 39}… map={{"a":[1.0,"ü"]}} n=3 none=null on=true os=linux'
    assert label(StepRun(step="build")) == "build"
    assert label(instance("test[1]")) == "test[1]"


def test_instances_stand_below_their_step() -> None:
    steps = [
        StepRun(step="a"),
        StepRun(step="b"),
        StepRun(step="c"),
        instance("b[0]"),
        instance("a[0]"),
        instance("b[1]"),
    ]
    assert names(in_order(steps)) == ["a", "a[0]", "b", "b[0]", "b[1]", "c"]
    assert names(in_order(steps[3:])) == ["b[0]", "b[1]", "a[0]"]


def test_a_step_ends_after_its_instances() -> None:
    ended = StepRun(step="a", instances=2, end_time=ENDED)
    begun = StepRun(step="b", instances=1)
    steps = [ended, begun, StepRun(step="c"), instance("a[1]"), instance("b[0]")]
    assert names(as_told(steps)) == ["a[1]", "a", "b", "b[0]", "c"]
    assert names(as_told([ended])) == ["a"]
    assert names(as_told([ended, StepRun(step="c")])) == ["a", "c"]
