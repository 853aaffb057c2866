"""People decide at gates: who may, when it counts, and what is said to those whose decision does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor.sdk import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, from_struct
from conveyor.v1.pipeline_pb2 import Concurrency, ConcurrencyPolicy, Decision, Matrix, TriggerRule
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Counted, Hold, fail
from tests.support.belt import Belt, on_both_stores, one, reason, state, states, step, step_reason
from tests.support.calls import call as call_step
from tests.support.calls import there
from tests.support.gates import APPROVED, REJECTED, gate, opened
from tests.support.golang import Go
from tests.support.grpcurl import call, refused
from tests.support.http import Http, http_url

DECIDE = "conveyor.v1.RunService/DecideStep"


async def refusal(
    belt: Belt, run: Run, step: str = "ask", by: str = "ann", decision: int = APPROVED
) -> tuple[str, str]:
    """Reason and message of a decision that is refused."""
    with pytest.raises(FailedPrecondition) as caught:
        await belt.client.runs.decide(run.id, step, Decision.ValueType(decision), by)
    return caught.value.reason, caught.value.message


@on_both_stores
async def test_an_approval_lets_the_run_go_on(belt: Belt) -> None:
    deploy = Counted()
    belt.drive("deploy", deploy)
    run = await opened(belt, gate("ask", message="Deploy version ${{ resource.spec.version }}?"), step("deploy"))
    waiting = one((await belt.client.runs.get(run.id)).steps, "ask")
    assert (waiting.message, waiting.wait.approvals, waiting.attempt) == ("Deploy version 7?", 1, 0)
    assert waiting.wait.HasField("since")
    assert not waiting.wait.HasField("until")
    said = await belt.client.runs.approve(run.id, "ask", "ann", "looks good")
    assert (said.message, [made.by for made in said.decisions]) == ("approved by ann: looks good", ["ann"])
    ended = await belt.ended(run)
    assert (state(ended), states(ended)) == ("SUCCEEDED", {"ask": "SUCCEEDED", "deploy": "SUCCEEDED"})
    asked = one(ended.steps, "ask")
    (made,) = asked.decisions
    assert (made.decision, made.by, made.comment) == (APPROVED, "ann", "looks good")
    assert made.time.ToDatetime() >= run.create_time.ToDatetime()
    assert from_struct(asked.result.data) == {
        "decision": "APPROVED",
        "message": "Deploy version 7?",
        "decisions": [{"decision": "APPROVED", "by": "ann", "time": made.time.ToJsonString(), "comment": "looks good"}],
    }
    (job,) = deploy.jobs
    assert job.results["ask"].data == from_struct(asked.result.data)


async def test_a_rejection_fails_the_run(belt: Belt) -> None:
    deploy = Counted()
    belt.drive("deploy", deploy)
    run = await opened(belt, gate("ask"), step("deploy"))
    await belt.client.runs.reject(run.id, "ask", "bob", "not on Friday")
    ended = await belt.ended(run)
    assert (state(ended), reason(ended)) == ("FAILED", "STEP_FAILED")
    assert ended.message == "step ask failed: rejected by bob: not on Friday"
    assert step_reason(one(ended.steps, "ask")) == "GATE_REJECTED"
    assert deploy.count == 0


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_later_steps_know_who_decided(belt: Belt, transport: str) -> None:
    tell = Counted()
    belt.drive("tell", tell, transport=transport)
    when = "steps.ask.data.decision == 'REJECTED' && steps.ask.reason == 'GATE_REJECTED'"
    after = step("tell", trigger_rule=TriggerRule.TRIGGER_RULE_ALL_DONE, when=when)
    first = "steps.ask.data.decisions[0]"
    after.params.update({"by": f"${{{{ {first}.by }}}}", "why": f"${{{{ {first}.comment }}}}"})
    run = await opened(belt, gate("ask"), after)
    await belt.client.runs.reject(run.id, "ask", "bob", "no")
    await belt.ended(run)
    (job,) = tell.jobs
    assert job.params == {"by": "bob", "why": "no"}
    assert job.results["ask"].data["decision"] == "REJECTED"


@on_both_stores
async def test_as_many_people_as_asked_for_must_approve(belt: Belt) -> None:
    run = await opened(belt, gate("ask", approvals=2))
    said = await belt.client.runs.approve(run.id, "ask", "ann")
    assert (said.wait.approvals, step_reason(said)) == (1, "AWAITING_DECISION")
    assert one((await belt.client.runs.get(run.id)).steps, "ask").wait.approvals == 1
    said = await belt.client.runs.approve(run.id, "ask", "ann", "still")
    assert (said.wait.approvals, len(said.decisions)) == (1, 1)
    await belt.client.runs.approve(run.id, "ask", "bob")
    ended = await belt.ended(run)
    assert (state(ended), one(ended.steps, "ask").message) == ("SUCCEEDED", "approved by ann and bob")


@pytest.mark.parametrize(("default", "end"), [(0, "FAILED"), (REJECTED, "FAILED"), (APPROVED, "SUCCEEDED")])
async def test_the_timeout_decides_by_default(belt: Belt, default: int, end: str) -> None:
    await belt.pipeline(gate("ask", timeout=0.1, default_decision=default))
    ended = await belt.ended(await belt.start())
    verb = "approved" if default == APPROVED else "rejected"
    assert (state(ended), ended.steps[0].message) == (end, f"{verb} by default: nobody decided within 0.1 s")
    (made,) = ended.steps[0].decisions
    assert (made.by, made.decision) == ("", default or REJECTED)


async def test_how_long_a_gate_waits_is_told(belt: Belt) -> None:
    run = await opened(belt, gate("ask", timeout=3600))
    asked = one((await belt.client.runs.get(run.id)).steps, "ask")
    assert asked.wait.until == asked.next_time
    assert asked.next_time.ToDatetime() - asked.queue_time.ToDatetime() >= timedelta(hours=1)


@on_both_stores
@pytest.mark.parametrize("force", [False, True])
async def test_cancel_ends_a_gate(belt: Belt, force: bool) -> None:
    run = await opened(belt, gate("ask", timeout=3600), step("deploy"))
    await belt.client.runs.cancel(run.id, "no longer wanted", force=force)
    ended = await belt.ended(run)
    assert (state(ended), states(ended)) == ("CANCELLED", {"ask": "CANCELLED", "deploy": "SKIPPED"})
    assert (await refusal(belt, run))[0] == "RUN_FINISHED"


async def test_run_timeout_and_fail_fast_end_a_gate(belt: Belt) -> None:
    await belt.pipeline(gate("ask"), timeout=timedelta(seconds=1))
    ended = await belt.ended(await belt.start())
    assert (reason(ended), step_reason(ended.steps[0])) == ("TIMED_OUT", "RUN_TIMED_OUT")
    belt.drive("broken", fail)
    run = await opened(belt, gate("first"), step("broken", "broken", "first"), gate("ask"), graph=True)
    await belt.client.runs.approve(run.id, "first", "ann")
    ended = await belt.ended(run)
    assert states(ended) == {"first": "SUCCEEDED", "broken": "FAILED", "ask": "SKIPPED"}


async def test_a_finally_step_may_ask(belt: Belt) -> None:
    belt.drive("deploy", fail)
    run = await opened(belt, step("deploy"), finally_steps=[gate("ask", message="The run is ${{ run.state }}")])
    assert one((await belt.client.runs.get(run.id)).steps, "ask").message == "The run is FAILED"
    await belt.client.runs.approve(run.id, "ask", "ann")
    ended = await belt.ended(run)
    assert (state(ended), states(ended)) == ("FAILED", {"deploy": "FAILED", "ask": "SUCCEEDED"})


async def test_what_is_asked_may_lack_a_value(belt: Belt) -> None:
    await belt.pipeline(gate("ask", message="Deploy ${{ resource.spec.nope }}?"))
    ended = await belt.ended(await belt.start())
    assert step_reason(ended.steps[0]) == "INPUT_MISSING"
    assert ended.steps[0].message == "gate.message: resource.spec.nope is not there"


async def test_a_condition_leaves_a_gate_out(belt: Belt) -> None:
    asks = gate("ask", when="resource.spec.version > 7.0")
    belt.drive("deploy", Counted())
    await belt.pipeline(asks, step("deploy", trigger_rule=TriggerRule.TRIGGER_RULE_NONE_FAILED))
    ended = await belt.ended(await belt.start(version=7))
    assert (state(ended), states(ended)) == ("SUCCEEDED", {"ask": "SKIPPED", "deploy": "SUCCEEDED"})


async def test_a_retry_takes_an_approval_over(belt: Belt) -> None:
    belt.drive("deploy", fail)
    run = await opened(belt, gate("ask"), step("deploy"))
    await belt.client.runs.approve(run.id, "ask", "ann")
    await belt.ended(run)
    retried = await belt.ended(await belt.client.runs.retry(run.id))
    asked = one(retried.steps, "ask")
    assert (asked.inherited, [made.by for made in asked.decisions]) == (True, ["ann"])


async def test_each_instance_of_a_matrix_asks_for_itself(belt: Belt) -> None:
    tell = Counted()
    belt.drive("tell", tell)
    asks = gate("ask", message="Deploy to ${{ matrix.env }}?", matrix=Matrix(fail_fast=False))
    asks.matrix.axes["env"].list_value.extend(["test", "prod"])
    after = step("tell", "tell", "ask", trigger_rule=TriggerRule.TRIGGER_RULE_ALL_DONE)
    after.params.update({"said": "${{ steps.ask.data[1].decision }} by ${{ steps.ask.data[1].decisions[0].by }}"})
    await belt.pipeline(asks, after, graph=True)
    run = await belt.start()
    waiting = await belt.until_step(run, "ask[1]", "QUEUED", reason="AWAITING_DECISION")
    assert waiting.message == "Deploy to prod?"
    assert await refusal(belt, run) == ("NO_OPEN_GATE", "gate ask has 2 instances; decide ask[0] or ask[1]")
    assert (await belt.client.runs.approve(run.id, "ask[0]", "ann")).step == "ask[0]"
    assert await refusal(belt, run, by="bob") == ("NO_OPEN_GATE", "gate ask has 2 instances; decide ask[1]")
    said = await belt.client.runs.reject(run.id, "ask[1]", "bob", "not prod")
    assert (said.step, said.message, said.matrix_step) == ("ask[1]", "rejected by bob: not prod", "ask")
    ended = await belt.ended(run)
    assert (state(ended), states(ended)["ask"]) == ("FAILED", "FAILED")
    assert [job.params for job in tell.jobs] == [{"said": "REJECTED by bob"}]


@pytest.mark.parametrize("end", ["approve", "cancel"])
async def test_a_gate_within_a_run_of_a_step(belt: Belt, end: str) -> None:
    await belt.pipeline(gate("ask"), name="inner")
    await belt.pipeline(call_step("call", "inner"), name="outer")
    run = await belt.start("outer")
    inner = await there(belt, (await belt.until_step(run, "call", "RUNNING")).child_run)
    await belt.until_step(inner, "ask", "QUEUED", reason="AWAITING_DECISION")
    if end == "cancel":
        await belt.client.runs.cancel(run.id)
    else:
        await belt.client.runs.approve(inner.id, "ask", "ann")
    assert state(await belt.ended(run)) == ("CANCELLED" if end == "cancel" else "SUCCEEDED")
    assert states(await belt.ended(inner)) == {"ask": "CANCELLED" if end == "cancel" else "SUCCEEDED"}


# Decisions that don't count


async def test_a_decision_is_made_once_and_not_taken_back(belt: Belt) -> None:
    run = await opened(belt, gate("ask"), step("deploy"))
    first = await belt.client.runs.approve(run.id, "ask", "ann", "good")
    assert await belt.client.runs.approve(run.id, "ask", "ann", "better") == first
    assert await refusal(belt, run, decision=REJECTED) == (
        "ALREADY_DECIDED",
        "ann has approved gate ask already; that cannot be taken back",
    )
    assert await refusal(belt, run, by="bob") == (
        "NO_OPEN_GATE",
        "gate ask is closed already: SUCCEEDED, approved by ann: good",
    )


async def test_nobody_decides_at_what_is_no_open_gate(belt: Belt) -> None:
    hold = Hold()
    belt.drive("build", hold)
    await belt.pipeline(step("build"), gate("ask"))
    run = await belt.start()
    await hold.started.wait()
    assert await refusal(belt, run) == ("NO_OPEN_GATE", "gate ask is not open yet: what goes before it has not ended")
    assert await refusal(belt, run, "build") == (
        "NO_OPEN_GATE",
        "step build is no gate: it is the work of driver build",
    )
    with pytest.raises(NotFound, match=f"run {run.id} has no step nope"):
        await belt.client.runs.approve(run.id, "nope", "ann")
    nowhere = "01890000-0000-7000-8000-000000000000"
    with pytest.raises(NotFound, match=f"run {nowhere}"):
        await belt.client.runs.approve(nowhere, "ask", "ann")


async def test_nobody_decides_before_the_run_has_its_turn(belt: Belt) -> None:
    queue = Concurrency(policy=ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE)
    first = await opened(belt, gate("ask"), concurrency=queue)
    second = await belt.client.runs.start("app", first.resource)
    assert await refusal(belt, second) == ("NO_OPEN_GATE", "gate ask is not open yet: its run has not started")
    await belt.client.runs.approve(first.id, "ask", "ann")
    await belt.until_step(second, "ask", "QUEUED")
    await belt.client.runs.approve(second.id, "ask", "ann")
    assert state(await belt.ended(second)) == "SUCCEEDED"


async def test_nobody_decides_after_the_end(belt: Belt) -> None:
    run = await opened(belt, gate("ask"))
    await belt.client.runs.approve(run.id, "ask", "ann")
    ended = await belt.ended(run)
    assert await refusal(belt, run, by="bob") == ("RUN_FINISHED", f"run {run.id} has ended already, SUCCEEDED")
    assert (await refusal(belt, run, decision=REJECTED))[0] == "ALREADY_DECIDED"
    # Whoever lost the answer asks again, and hears that it counts.
    assert (await belt.client.runs.approve(run.id, "ask", "ann")).message == "approved by ann"
    assert (await belt.client.runs.get(run.id)).etag == ended.etag


async def test_somebody_must_decide(belt: Belt) -> None:
    run = await opened(belt, gate("ask"))
    for by, said in (("", "by: is missing"), ("ann\n", "must be one line of printable text")):
        with pytest.raises(InvalidArgument, match=said):
            await belt.client.runs.approve(run.id, "ask", by)
    with pytest.raises(InvalidArgument, match="decision: is missing"):
        await belt.client.runs.decide(run.id, "ask", Decision.DECISION_UNSPECIFIED, "ann")
    assert states(await belt.client.runs.get(run.id)) == {"ask": "QUEUED"}


async def test_a_request_id_stands_for_one_decision(belt: Belt) -> None:
    run = await opened(belt, gate("ask", approvals=2))
    for _ in range(2):
        said = await belt.client.runs.approve(run.id, "ask", "ann", request_id="one")
        assert len(said.decisions) == 1
    with pytest.raises(AlreadyExists) as caught:
        await belt.client.runs.approve(run.id, "ask", "bob", request_id="one")
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_a_refused_request_is_not_remembered(belt: Belt) -> None:
    await belt.pipeline(gate("first"), gate("ask"))
    run = await belt.start()
    with pytest.raises(FailedPrecondition):
        await belt.client.runs.approve(run.id, "ask", "ann", request_id="one")
    await belt.client.runs.approve(run.id, "first", "ann")
    await belt.client.runs.approve(run.id, "ask", "bob", request_id="one")
    assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_grpcurl_decides(belt: Belt) -> None:
    run = await opened(belt, gate("ask", approvals=2))
    request = {"namespace": belt.namespace, "id": run.id, "step": "ask", "decision": "DECISION_APPROVED", "by": "ann"}
    answer = call(belt.address, DECIDE, request)
    assert answer["step"]["wait"]["approvals"] == 1
    assert "ALREADY_DECIDED" in refused(belt.address, DECIDE, {**request, "decision": "DECISION_REJECTED"})
    assert "by: is missing" in refused(belt.address, DECIDE, {**request, "by": ""})
    answer = call(belt.address, DECIDE, {**request, "by": "bob", "comment": "good"})
    assert answer["step"]["decisions"][1]["comment"] == "good"
    assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_http_decides(belt: Belt) -> None:
    run = await opened(belt, gate("ask", approvals=2))
    request = {"id": run.id, "step": "ask", "decision": "DECISION_APPROVED", "by": "ann"}
    async with Http(http_url(belt.site.server), belt.namespace) as http:
        answer = await http.call("RunService/DecideStep", **request)
        assert answer["step"]["decisions"][0]["by"] == "ann"
        contrary = {**request, "decision": "DECISION_REJECTED"}
        status, code, said = await http.refused("RunService/DecideStep", contrary)
    assert (status, code, said[:16]) == (400, "failed_precondition", "ann has approved")


@pytest.mark.timeout(600)  # the first build on a machine takes a minute
async def test_go_decides(belt: Belt, go: Go) -> None:
    run = await opened(belt, gate("ask"))
    process = go.client(belt, "approve", run.id, "ask", "gopher")
    assert (await asyncio.to_thread(process.wait), process.output) == (0, ["approved by gopher"])
    process = go.client(belt, "approve", run.id, "ask", "ann")
    assert await asyncio.to_thread(process.wait) == 1
    assert "reason: RUN_FINISHED" in process.output


async def test_a_run_does_not_wait_for_an_optional_gate(belt: Belt) -> None:
    hold, extra = Hold(), Counted()
    belt.drive("build", hold)
    belt.drive("extra", extra)
    asks = [gate("ask", optional=True), gate("later", optional=True)]
    steps = [step("build"), *asks, step("one", "extra", "ask"), step("two", "extra", "later")]
    run = await opened(belt, *steps, graph=True)
    await belt.client.runs.approve(run.id, "ask", "ann")
    await belt.until_step(run, "one", "SUCCEEDED")
    hold.released.set()
    ended = await belt.ended(run)
    assert (state(ended), extra.steps) == ("SUCCEEDED", ["one"])
    assert step_reason(one(ended.steps, "later")) == "NOT_DECIDED"
    assert one(ended.steps, "later").message == "nobody decided before all else had ended"
    assert step_reason(one(ended.steps, "two")) == "NEED_SKIPPED"
