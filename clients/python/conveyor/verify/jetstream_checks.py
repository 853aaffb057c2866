"""The checks of the JetStream contract."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from secrets import token_hex

from conveyor.verify import checks, tickets
from conveyor.verify.attempt import Attempt
from conveyor.verify.jetstream_site import JetStreamSite
from conveyor.verify.rig import STARTED, Rig, Unmet
from conveyor.verify.site import CannotServe

_FROZEN_S = 4.0
_AWAY_S = 1.0
# How long a driver is watched that must not take another ticket.
_WATCHED_S = 1.0


async def registers(rig: Rig[JetStreamSite]) -> str:
    site = rig.site
    expected = tickets.consumer(rig.namespace, rig.driver)
    if site.name != expected if rig.driver else not site.name.startswith(expected):
        raise Unmet(f"a consumer {expected or 'of any name'}{'' if rig.driver else '…'}", f"it made {site.name}")
    config = site.consumer["config"]
    for key, wanted in (("ack_policy", "explicit"), ("deliver_policy", "all")):
        if config.get(key) != wanted:
            raise Unmet(f"a consumer with {key} {wanted}", f"it has {config.get(key)}")
    await rig.works("its consumer was made")
    return f"made its consumer {site.name} with filters {', '.join(site.filters)}, and pulls"


async def heartbeats(rig: Rig[JetStreamSite]) -> str:
    site = rig.site
    attempt = await rig.start(checks.LONG_S)
    wait = site.consumer["config"]["ack_wait"] / 1e9
    sequence = site.sequences[attempt.token]
    await rig.until(
        lambda: site.acks.get(sequence),
        f"an ack, or +WPI before the ack_wait of {wait:g} s is over",
        lambda: "neither came",
        wait,
    )
    said = site.acks[sequence][0]
    return (
        "acknowledges before it works" if said == "+ACK" else f"said {said} before the ack_wait of {wait:g} s was over"
    )


async def slots(rig: Rig[JetStreamSite]) -> str:
    attempts = checks.held(rig.slots + 1)
    await checks.at_once(rig, attempts[: rig.slots])
    await rig.site.give(attempts[rig.slots :])
    last = rig.site.sequences[attempts[-1].token]
    fresh = rig.site.looks + 2
    await rig.site.changes.until(lambda: _delivered(rig.site) >= last, _WATCHED_S)
    await rig.until(lambda: rig.site.looks >= fresh, "the broker's word on the consumer", lambda: "it does not answer")
    if _delivered(rig.site) >= last:
        raise Unmet(
            f"{checks.so_many(rig.slots, 'ticket')} to be taken at a time, as CONVEYOR_SLOTS says", "one more was taken"
        )
    return f"worked on {checks.so_many(rig.slots, 'ticket')} at a time, and took no more"


async def unknown_field(rig: Rig[JetStreamSite]) -> str:
    attempt = Attempt({"log": [STARTED]})
    ticket = rig.site.ticket(attempt)
    future = {"text": "future", "list": [1]}
    ticket["future"] = ticket["payload"]["future"] = future
    ticket["payload"]["metadata"] |= {"conveyor.future": "x", "conveyor.run_state": "FUTURE", "future": "x"}
    await rig.site.publish_ticket(attempt, ticket, attempt.token)
    return await checks.unbothered(rig, "a ticket with unknown keys", attempt)


async def unknown_message(rig: Rig[JetStreamSite]) -> str:
    for body in (b"not JSON", b'{"event":"future"}', b"[]"):
        await rig.site.publish(body, token_hex(12))
    await checks.unbothered(rig, "a message that is no ticket")
    await _all_acknowledged(rig, "messages that are no tickets")
    return "messages that are no tickets were acknowledged, and did not disturb it"


async def slow_server(rig: Rig[JetStreamSite]) -> str:
    async def stand_still() -> None:
        rig.site.broker.freeze()
        await asyncio.sleep(_FROZEN_S)
        rig.site.broker.thaw()

    await _at_work(rig, stand_still, f"an attempt that ran while the broker stood still for {_FROZEN_S:g} s")
    return f"published its result to a broker that stood still for {_FROZEN_S:g} s"


async def reattaches(rig: Rig[JetStreamSite]) -> str:
    async def be_away() -> None:
        await checks.away(rig, _AWAY_S)

    await _at_work(rig, be_away, "an attempt that ran while the broker was away")
    return "came back, published the result of what it held, and took the next ticket"


async def once(rig: Rig[JetStreamSite]) -> str:
    site = rig.site
    attempt = Attempt({"log": [STARTED]})
    ticket = site.ticket(attempt)
    await site.publish_ticket(attempt, ticket, attempt.token)
    await rig.answer(attempt)
    await rig.started(attempt)
    await _all_acknowledged(rig, "the ticket that was answered")
    await checks.away(rig, _AWAY_S)
    # As the broker delivers a ticket again whose ack it lost.
    await site.publish_ticket(attempt, ticket, token_hex(12))
    # Its line comes behind one that the ticket may have been answered with.
    await rig.start(0)
    await _all_acknowledged(rig, "a ticket that was answered and came again")
    written = attempt.times_written(STARTED)
    if written != 1:
        raise Unmet("an attempt that is not run again when its ticket comes again", f"it was run {written} times")
    return "acknowledged a ticket that came again, and did not run the attempt twice"


async def drains(rig: Rig[JetStreamSite]) -> str:
    attempt = await rig.start(2.0)
    rig.process.terminate()
    later = await rig.give()
    await checks.drained(rig, attempt)
    if not later.answers and not await _is_there(rig.site, later):
        await rig.site.changes.until(lambda: later.answers, _WATCHED_S)
        if not later.answers:
            raise Unmet(
                "a ticket that it does not answer to stay for others", "it acknowledged one that came after SIGTERM"
            )
    return "reported on SIGTERM what ran, and exited with 0"


async def _at_work(rig: Rig[JetStreamSite], disturb: Callable[[], Awaitable[None]], what: str) -> None:
    """Something happens to the broker while the driver works. It answers all the same, and takes the next ticket."""
    for _ in range(checks.TRIES):
        attempt = await rig.start(1.5)
        before = time.time_ns()
        await disturb()
        answer = await checks.succeeded(rig, attempt, what)
        await rig.works("that")
        # On a busy machine the driver may be ready before anything has happened.
        if answer.at > before:
            return
    raise Unmet("attempts of 1.5 s to take so long", "they were answered before the broker was disturbed")


async def _all_acknowledged(rig: Rig[JetStreamSite], what: str) -> None:
    site = rig.site
    # The next look may be under way already.
    fresh = site.looks + 2
    await rig.until(
        lambda: (
            site.looks >= fresh and not site.consumer.get("num_ack_pending") and not site.consumer.get("num_pending")
        ),
        f"{what} to be acknowledged",
        lambda: f"{site.consumer.get('num_ack_pending')} are not",
    )


async def _is_there(site: JetStreamSite, attempt: Attempt) -> bool:
    try:
        await site.call("STREAM.MSG.GET.messages", {"seq": site.sequences[attempt.token]})
    except CannotServe:
        return False
    return True


def _delivered(site: JetStreamSite) -> int:
    return int(site.consumer.get("delivered", {}).get("stream_seq", 0))
