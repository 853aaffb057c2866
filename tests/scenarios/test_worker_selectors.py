"""Steps that choose their workers by label, on real servers."""

from __future__ import annotations

import pytest

from conveyor.sdk import InvalidArgument, Job, to_struct
from conveyor.v1.pipeline_pb2 import LabelOperator, LabelRequirement, LabelSelector, Matrix, Param
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Transport
from tests.support.behaviour import Hold, ok
from tests.support.belt import Belt, on_both_stores, one, state, step, step_reason
from tests.support.wait import until

NOT_IN = LabelOperator.LABEL_OPERATOR_NOT_IN
EXISTS = LabelOperator.LABEL_OPERATOR_EXISTS


def on(*terms: LabelRequirement, **labels: str) -> LabelSelector:
    """A selector."""
    return LabelSelector(match_labels=labels, match_expressions=terms)


def term(key: str, operator: LabelOperator.ValueType, *values: str) -> LabelRequirement:
    """One of its terms."""
    return LabelRequirement(key=key, operator=operator, values=values)


class Where:
    """Keeps which worker had which step."""

    def __init__(self) -> None:
        self.had: dict[str, str] = {}

    def __call__(self, worker: str) -> object:
        async def handler(job: Job) -> None:
            self.had[job.step] = worker

        return handler


def drive(belt: Belt, where: Where, worker: str, **labels: str) -> None:
    """A worker of driver `build`."""
    belt.drive("build", where(worker), worker=worker, labels=labels)  # type: ignore[arg-type]


async def connected(belt: Belt, count: int) -> None:
    """Wait until driver `build` has so many workers."""

    async def there() -> bool:
        return [len(each.workers) async for each in belt.client.drivers.list() if each.name == "build"] == [count]

    await until(there, f"{count} workers")


@on_both_stores
async def test_each_step_goes_to_a_worker_that_it_selects(belt: Belt) -> None:
    where = Where()
    drive(belt, where, "amd", os="amd64")
    drive(belt, where, "arm", os="arm64", gpu="a100")
    await connected(belt, 2)
    await belt.pipeline(
        step("arm", "build", worker_selector=on(os="arm64")),
        step("amd", "build", worker_selector=on(os="amd64")),
        step("not-arm", "build", worker_selector=on(term("os", NOT_IN, "arm64"))),
        step("gpu", "build", worker_selector=on(term("gpu", EXISTS), os="arm64")),
        step("any", "build", worker_selector=on()),
        graph=True,
    )
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    assert where.had.pop("any") in {"amd", "arm"}
    assert where.had == {"arm": "arm", "amd": "amd", "not-arm": "amd", "gpu": "arm"}


@on_both_stores
async def test_a_step_that_nobody_fits_says_so_and_starts_when_somebody_comes(belt: Belt) -> None:
    where = Where()
    drive(belt, where, "one", os="amd64")
    drive(belt, where, "two", os="amd64")
    await connected(belt, 2)
    await belt.pipeline(step("a", "build", worker_selector=on(os="arm64")))
    run = await belt.start()
    waiting = await belt.until_step(run, "a", "QUEUED", reason="NO_WORKER")
    assert waiting.message == "no worker with os=arm64 (2 connected: os=amd64)"
    assert (waiting.wait.workers, waiting.wait.other_workers, list(waiting.wait.last_workers)) == (0, 2, [])
    drive(belt, where, "three", os="arm64")
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert where.had == {"a": "three"}


async def test_steps_that_wait_for_one_kind_do_not_keep_back_the_other(belt: Belt) -> None:
    where = Where()
    drive(belt, where, "amd", os="amd64")
    await connected(belt, 1)
    await belt.pipeline(step("a", "build", worker_selector=on(os="${{ resource.spec.os }}")))
    waiting = [await belt.start(os="arm64") for _ in range(5)]
    for _ in range(3):
        assert state(await belt.ended(await belt.start(os="amd64"))) == "SUCCEEDED"
    assert [(await belt.client.runs.get(run.id)).steps[0].state for run in waiting] == [2] * 5


async def test_when_those_that_fit_are_busy_it_says_that(belt: Belt) -> None:
    hold = Hold()
    belt.drive("build", hold, labels={"os": "arm64"}, slots=1)
    belt.drive("build", ok, labels={"os": "amd64"})
    await connected(belt, 2)
    await belt.pipeline(step("a", "build", worker_selector=on(os="arm64")))
    first, second = await belt.start(), await belt.start()
    await hold.started.wait()
    waiting = await belt.until_step(second, "a", "QUEUED", reason="WORKERS_BUSY")
    assert waiting.message == "all workers of driver build with os=arm64 are busy"
    assert (waiting.wait.workers, waiting.wait.slots, waiting.wait.ahead) == (1, 1, 0)
    hold.released.set()
    assert [state(await belt.ended(run)) for run in (first, second)] == ["SUCCEEDED"] * 2


async def test_a_selector_comes_of_params_and_earlier_results(belt: Belt) -> None:
    async def choose(job: Job) -> dict[str, object]:
        return {"zone": "b"}

    where = Where()
    belt.drive("choose", choose)
    drive(belt, where, "right", os="linux-arm64", zone="b")
    drive(belt, where, "wrong", os="linux-arm64", zone="a")
    await connected(belt, 2)
    await belt.pipeline(
        step("choose"),
        step(
            "a",
            "build",
            when="params.arch != ''",
            params=to_struct({"n": "${{ 1 + 1 }}"}),
            worker_selector=on(
                term("zone", LabelOperator.LABEL_OPERATOR_IN, "c", "${{ steps.choose.data.zone }}"),
                os="linux-${{ params.arch }}",
            ),
        ),
        params=[Param(name="arch", required=True)],
    )
    await belt.client.resources.create(Resource(name="x", definition="app"))
    run = await belt.client.runs.start("app", "x", "release", params={"arch": "arm64"})
    ended = await belt.ended(run)
    assert (state(ended), where.had) == ("SUCCEEDED", {"a": "right"})
    assert one(ended.steps, "a").worker_selector == on(
        term("zone", LabelOperator.LABEL_OPERATOR_IN, "c", "b"), os="linux-arm64"
    )
    assert one(ended.steps, "a").params == to_struct({"n": 2})


async def test_instances_of_a_matrix_go_to_different_workers(belt: Belt) -> None:
    where = Where()
    for name in ("amd64", "arm64"):
        drive(belt, where, name, os=name)
    await connected(belt, 2)
    axis = to_struct({"os": ["arm64", "amd64", "riscv"]}).fields["os"]
    await belt.pipeline(
        step("a", "build", matrix=Matrix(axes={"os": axis}), worker_selector=on(os="${{ matrix.os }}")),
        step("b", "build", matrix=Matrix(axes={"os": axis}), worker_selector=on(os="arm64")),
        graph=True,
    )
    run = await belt.start()
    waiting = await belt.until_step(run, "a[2]", "QUEUED", reason="NO_WORKER")
    assert waiting.message == "no worker with os=riscv (2 connected: 1 with os=amd64; 1 with os=arm64)"
    drive(belt, where, "riscv", os="riscv")
    ended = await belt.ended(run)
    assert (state(ended), where.had) == (
        "SUCCEEDED",
        {"a[0]": "arm64", "a[1]": "amd64", "a[2]": "riscv"} | {f"b[{n}]": "arm64" for n in range(3)},
    )


async def test_a_selector_that_comes_to_nothing_fails_the_step(belt: Belt) -> None:
    await belt.pipeline(step("a", "build", worker_selector=on(os="${{ resource.spec.os }}")))
    for spec, reason, said in (
        ({}, "INPUT_MISSING", 'worker_selector.match_labels["os"]: resource.spec.os is not there'),
        ({"os": ["x"]}, "INPUT_INVALID", "it is a list, which has no place within other text"),
        ({"os": "x" * 257}, "INPUT_TOO_LARGE", "has 257 bytes; a label has at most 256"),
    ):
        failed = (await belt.ended(await belt.start(**spec))).steps[0]  # type: ignore[arg-type]
        assert (step_reason(failed), said in failed.message) == (reason, True), failed.message


async def test_what_cannot_select_is_refused(belt: Belt) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await belt.pipeline(step("a", "build", worker_selector=on(term("os", EXISTS, "x"), os="${{ prams.os }}")))
    assert refused.value.violations[0].field == "pipeline.steps[0].worker_selector.match_expressions[0].values"
    with pytest.raises(InvalidArgument) as refused:
        await belt.pipeline(step("a", "build", worker_selector=on(os="${{ prams.os }}")))
    assert refused.value.violations[0].field == 'pipeline.steps[0].worker_selector.match_labels["os"]'


async def test_a_worker_that_comes_back_with_other_labels_has_those(belt: Belt) -> None:
    where = Where()
    belt.spawn("build", "ok", CONVEYOR_WORKER_LABELS="os=amd64, zone=a")
    await connected(belt, 1)
    await belt.pipeline(step("a", "build", worker_selector=on(os="arm64", zone="a")))
    run = await belt.start()
    waiting = await belt.until_step(run, "a", "QUEUED", reason="NO_WORKER")
    assert waiting.message == "no worker with os=arm64, zone=a (1 connected: os=amd64, zone=a)"
    belt.spawn("build", "ok", CONVEYOR_WORKER_LABELS="os=arm64,zone=a")
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert not where.had


async def test_drivers_over_jetstream_have_no_labels(belt: Belt) -> None:
    belt.drive("build", ok, transport="jetstream", labels={"os": "arm64"})
    await belt.connected("build")
    await belt.pipeline(step("plain", "build"), step("a", "build", worker_selector=on(os="arm64")))
    run = await belt.start()
    # By now the driver's consumer is known to take tickets.
    await belt.until_step(run, "plain", "SUCCEEDED")
    waiting = await belt.until_step(run, "a", "QUEUED", reason="NO_WORKER")
    said = "no worker of driver build with os=arm64 is connected; those over JetStream have no labels"
    assert waiting.message == said
    belt.drive("build", ok, labels={"os": "arm64"})
    ended = await belt.ended(run)
    assert (state(ended), one(ended.steps, "a").attempts[0].transport) == ("SUCCEEDED", Transport.TRANSPORT_GRPC)
