"""The checks of the Work stream."""

import asyncio
from collections.abc import Sequence

from conveyor.v1.worker_service_pb2 import WorkResponse
from conveyor.verify import checks
from conveyor.verify.attempt import Answer, Attempt
from conveyor.verify.grpc_site import HEARTBEAT_S, GrpcSite, Stream
from conveyor.verify.rig import STARTED, Rig, Unmet

# Field 1000, a message of field 1000 with a text: what a later version of the protocol may send.
_UNKNOWN = b"\xc2\x3e\x09\xc2\x3e\x06future"
SLOW_S = 2.0
_AWAY_S = 1.0


async def registers(rig: Rig[GrpcSite]) -> str:
    stream = rig.site.streams[0]
    hello = stream.hello
    if hello is None:
        raise Unmet("Hello as the first message of the stream", "another message came first")
    if not hello.driver or (rig.driver and hello.driver != rig.driver):
        raise Unmet(f"a Hello of the driver {rig.driver or '(any name)'}", f"it named {hello.driver or 'none'}")
    if (hello.namespace or "default") != rig.namespace:
        raise Unmet(f"a Hello for the namespace {rig.namespace}", f"it named {hello.namespace or 'none'}")
    if hello.session or hello.holding:
        raise Unmet("a first Hello without a session and without attempts", "it named some")
    if hello.protocol > 1:
        raise Unmet("protocol version 1", f"it named {hello.protocol}")
    await rig.works("Hello")
    if stream.hellos > 1:
        raise Unmet("one Hello per stream", f"{stream.hellos} came")
    return f"said Hello as driver {hello.driver} of namespace {rig.namespace}"


async def heartbeats(rig: Rig[GrpcSite]) -> str:
    stream = _stream(rig)
    before, wanted, within = stream.heartbeats, 3, 12 * HEARTBEAT_S
    await rig.until(
        lambda: stream.heartbeats - before >= wanted,
        f"a heartbeat every {HEARTBEAT_S:g} s, as Welcome says",
        lambda: f"{stream.heartbeats - before} came",
        within,
    )
    return f"sent heartbeats every {HEARTBEAT_S:g} s"


async def slots(rig: Rig[GrpcSite]) -> str:
    hello = _stream(rig).hello
    said = hello.slots if hello is not None else 0
    if said != rig.slots:
        raise Unmet(f"a Hello with slots {rig.slots}, as CONVEYOR_SLOTS says", f"it said {said}")
    await checks.at_once(rig, checks.held(rig.slots))
    return f"said slots {rig.slots}, and worked on {checks.so_many(rig.slots, 'attempt')} at a time"


async def unknown_field(rig: Rig[GrpcSite]) -> str:
    attempt = Attempt({"log": [STARTED]})
    known = rig.site.assignment(attempt)
    known.run_state = 99  # type: ignore[assignment] # A later version may know more of them.
    assignment = known.FromString(known.SerializeToString() + _UNKNOWN)
    response = WorkResponse(assignments=[assignment])
    rig.site.send(WorkResponse.FromString(response.SerializeToString() + _UNKNOWN))
    return await checks.unbothered(rig, "an assignment with unknown fields", attempt)


async def unknown_message(rig: Rig[GrpcSite]) -> str:
    rig.site.send(WorkResponse())
    rig.site.send(WorkResponse.FromString(_UNKNOWN))
    return await checks.unbothered(rig, "a message that says nothing it knows")


def welcome_late(site: GrpcSite) -> None:
    """Before the driver of `slow_server` starts."""
    site.manners.welcomes_after = SLOW_S


async def slow_server(rig: Rig[GrpcSite]) -> str:
    if len(rig.site.streams) > 1:
        raise Unmet("one stream to a server whose Welcome comes late", f"{len(rig.site.streams)} were opened")
    lines = [f"{number:04d}" + "." * 1020 for number in range(200)]
    rig.site.manners.acks_after = SLOW_S
    rig.site.manners.reads.clear()
    attempt = await rig.give({"log": lines})
    await asyncio.sleep(SLOW_S)
    rig.site.manners.reads.set()
    await rig.answer(attempt, f"a result to a server that did not read for {SLOW_S:g} s")
    # Nothing but the ack, which comes meanwhile, keeps an impatient driver from sending it again.
    await asyncio.sleep(SLOW_S + 2 * HEARTBEAT_S)
    rig.site.manners.acks_after = 0
    await rig.works("a slow ack")
    if len(rig.site.streams) > 1:
        raise Unmet("one stream to a slow server", f"{len(rig.site.streams)} were opened")
    if len(attempt.answers) > 1:
        raise Unmet(f"one result to a server that acks after {SLOW_S:g} s", f"{len(attempt.answers)} came")
    if attempt.texts != lines:
        raise Unmet(f"all {len(lines)} lines to a server that did not read", f"{len(attempt.texts)} came")
    return f"was patient with a server that is {SLOW_S:g} s late, and said nothing twice"


async def reattaches(rig: Rig[GrpcSite]) -> str:
    attempt, session, stream = await _interrupted(rig)
    _expect_held(stream, attempt, attempt.answers)
    named = stream.hello.session if stream.hello is not None else ""
    if named != session:
        raise Unmet("a Hello with the session of before", f"it named {named or 'none'}")
    await checks.succeeded(rig, attempt, "an attempt that ran while the server was away")
    await rig.works("the server's return")
    return "came back with its session and what it held, and reported it"


async def once(rig: Rig[GrpcSite]) -> str:
    rig.site.manners.acks = False
    attempt = await rig.give({"log": [STARTED], "seconds": 2 * HEARTBEAT_S, "data": {"once": True}})
    first = await rig.answer(attempt)
    rig.site.manners.acks = True
    await checks.away(rig, _AWAY_S)
    before = len(attempt.answers)
    _expect_held(await _back(rig), attempt, attempt.answers[before:])
    await rig.until(
        lambda: len(attempt.answers) > before, "the result that was not acked once more", lambda: "it did not come"
    )
    # Longer than the attempt: if that is run again, it is over before.
    await rig.answer(await rig.start(4 * HEARTBEAT_S), "a result of the next attempt")
    again = attempt.answers[before:]
    runs = max(attempt.times_written(STARTED), len(again))
    if runs != 1:
        raise Unmet("an attempt that is not run again after a reconnect", f"it was run {runs} times")
    if (first.outcome, first.message, first.data) != (again[0].outcome, again[0].message, again[0].data):
        raise Unmet("the same result once more", "another one came")
    return "sent the result again that was not acked, and did not run the attempt twice"


async def drains(rig: Rig[GrpcSite]) -> str:
    stream = _stream(rig)
    attempt = await rig.start(2.0)
    rig.process.terminate()
    await checks.drained(rig, attempt)
    if not stream.asked_to_drain:
        raise Unmet("Drain after SIGTERM", "the driver ended without it")
    return "said Drain on SIGTERM, reported what ran, and exited with 0"


async def _interrupted(rig: Rig[GrpcSite]) -> tuple[Attempt, str, Stream]:
    """An attempt during which the server is killed and comes back, the session of before, and the stream after it."""
    for _ in range(checks.TRIES):
        welcome = _stream(rig).welcome
        attempt = await rig.start(2.0)
        await rig.site.go_away()
        # On a busy machine the driver may be ready before the server is gone.
        answered = bool(attempt.answers)
        await asyncio.sleep(_AWAY_S)
        await rig.site.come_back()
        stream = await _back(rig)
        if not answered and welcome is not None:
            return attempt, welcome.session, stream
    raise Unmet("attempts of 2 s to take so long", "they were answered before the server was gone")


async def _back(rig: Rig[GrpcSite]) -> Stream:
    """The driver's stream after the server has come back."""
    ended = rig.site.streams[-1]
    await rig.until(
        lambda: rig.site.stream not in (None, ended), "a Hello after the server's return", lambda: "none came"
    )
    return rig.site.streams[-1]


def _expect_held(stream: Stream, attempt: Attempt, answers: Sequence[Answer]) -> None:
    """The Hello lists the attempt, unless one of these answers came, by a call of its own, and was acked before."""
    if any(answer.at < stream.at for answer in answers):
        return
    holding = stream.hello.holding if stream.hello is not None else []
    if attempt.named not in [(each.run, each.step, each.attempt, each.token) for each in holding]:
        raise Unmet("a Hello that lists the attempt as held, with its token", f"{len(holding)} others are in it")


def _stream(rig: Rig[GrpcSite]) -> Stream:
    stream = rig.site.stream
    if stream is None:
        raise Unmet("a stream", rig.site.ready())
    return stream
