"""The checks that are the same over each transport. Each returns what it saw, or raises Unmet."""

import asyncio
from typing import Any

from conveyor.verify.attempt import Answer, Attempt
from conveyor.verify.rig import STARTED, Rig, Unmet
from conveyor.verify.site import Site

LONG_S = 600.0
"""An attempt that does not end before it is stopped."""
TRIES = 5
_LINE_BYTES = 256 * 1024
_UNDERWAY_S = 5.0
_DATA = {
    "text": 'äöü 漢字 🚚 "quoted" \\ tab\t line\nend',
    "number": -12.5,
    "whole": 9007199254740992,
    "yes": True,
    "nothing": None,
    "list": [1, "two", [3.25, {}], {"four": []}],
    "nested": {"a": {"b": {"c": "d"}}},
}


async def succeeds(rig: Rig[Site]) -> str:
    await succeeded(rig, await rig.give(), "an attempt with an empty spec")
    return "an attempt with an empty spec was SUCCEEDED"


async def fails(rig: Rig[Site]) -> str:
    text = "no space left – leider"
    answer = await rig.answer(await rig.give({"fail": text}))
    if answer.outcome != "FAILED" or text not in answer.message:
        raise Unmet(f"FAILED with the message {text!r}", f"{answer.outcome} came with {answer.message!r}")
    return "a failure was FAILED, with its message"


async def data(rig: Rig[Site]) -> str:
    answer = await rig.answer(await rig.give({"data": _DATA}))
    wrong = [key for key, value in _DATA.items() if not _same(answer.data.get(key, "missing"), value)]
    if wrong:
        shown = ", ".join(f"{key}: {answer.data.get(key, 'missing')!r}" for key in wrong)
        raise Unmet("all of the data as it was in the spec", f"these came differently: {shown}")
    return f"{len(_DATA)} values of data came as they were"


async def token(rig: Rig[Site]) -> str:
    first = await rig.give({"fail": "once"})
    _expect_named(first, await rig.answer(first))
    second = await rig.give({}, run=first.run, number=2)

    def others() -> list[Answer]:
        return [each for each in first.answers + second.answers if each.named != first.named]

    await rig.until(others, "a result of the second attempt", lambda: "none came")
    _expect_named(second, others()[0])
    return "the results of two attempts carried run, step, attempt and token of their own"


async def cancels(rig: Rig[Site]) -> str:
    attempt = await rig.start(LONG_S)
    await rig.site.cancel(attempt)
    answer = await rig.answer(attempt, "a result after the cancellation")
    if answer.outcome != "CANCELLED":
        raise Unmet("CANCELLED after the cancellation", f"{answer.outcome} came: {answer.message!r}")
    await rig.works("the cancellation")
    return "a cancelled attempt was CANCELLED, and the next one was taken"


async def logs_first(rig: Rig[Site]) -> str:
    lines = [f"line {number} ä🚚" for number in range(1, 101)]
    attempt = await rig.give({"log": lines})
    answer = await rig.answer(attempt)
    await rig.until(
        lambda: len(attempt.texts) >= len(lines), f"{len(lines)} log lines", lambda: f"{len(attempt.texts)} came"
    )
    late = sum(line.at > answer.at for line in attempt.lines)
    if late:
        raise Unmet("all lines before the result", f"{late} of {len(lines)} came after it")
    first = min(attempt.lines, key=lambda each: each.at)
    numbers = [line.seq for line in attempt.lines]
    if numbers != list(range(1, len(numbers) + 1)):
        raise Unmet("lines numbered 1, 2, 3, … in the order in which they come", f"they came as {_shortened(numbers)}")
    if attempt.texts != lines:
        raise Unmet("the lines as they were in the spec", f"the first was {first.text!r}")
    return f"{len(lines)} lines came in order, before the result"


async def long_line(rig: Rig[Site]) -> str:
    line = "".join(f"{number:07d}|" for number in range(_LINE_BYTES // 8))
    attempt = await rig.give({"log": [line]})
    await rig.answer(attempt)
    await rig.until(lambda: attempt.texts, "a log line of 256 KiB", lambda: "none came")
    longest = max(len(each.text.encode()) for each in attempt.lines)
    if longest > _LINE_BYTES:
        raise Unmet("lines of 256 KiB at most", f"one of {longest} bytes came")
    if attempt.texts != [line]:
        sizes = _shortened([len(text.encode()) for text in attempt.texts])
        raise Unmet(f"one line of {_LINE_BYTES} bytes", f"lines of {sizes} bytes came")
    return f"a line of 256 KiB came whole, in {so_many(len({line.seq for line in attempt.lines}), 'part')}"


async def at_once(rig: Rig[Site], attempts: list[Attempt]) -> None:
    """All of these are worked on at the same time."""
    await rig.site.give(attempts)
    await rig.until(
        lambda: all(each.lines for each in attempts),
        f"{so_many(len(attempts), 'attempt')} at work at a time",
        lambda: f"{sum(bool(each.lines) for each in attempts)} had begun",
    )


def held(count: int) -> list[Attempt]:
    """Attempts that tell when they begin, and do not end."""
    return [Attempt({"log": [STARTED], "seconds": LONG_S}) for _ in range(count)]


async def drained(rig: Rig[Site], attempt: Attempt) -> None:
    """After SIGTERM: what runs is reported, and the process exits with 0."""
    await rig.site.changes.until(lambda: rig.process.code is not None, rig.timeout)
    # What it said last may still be on its way.
    if not await rig.site.changes.until(lambda: attempt.answers, _UNDERWAY_S):
        raise Unmet(
            "a result of the attempt that ran at SIGTERM", f"none came; the driver {await rig.process.obituary()}"
        )
    if attempt.answers[0].outcome != "SUCCEEDED":
        raise Unmet("the attempt that ran at SIGTERM to be ended", f"it was {attempt.answers[0].outcome}")
    if rig.process.code != 0:
        raise Unmet("exit status 0 after SIGTERM", f"the driver {await rig.process.obituary()}")


async def succeeded(rig: Rig[Site], attempt: Attempt, what: str) -> Answer:
    """The attempt is done to its end."""
    answer = await rig.answer(attempt, f"a result of {what}")
    if answer.outcome != "SUCCEEDED":
        raise Unmet(f"{what} to be SUCCEEDED", f"it was {answer.outcome}: {answer.message!r}")
    return answer


async def unbothered(rig: Rig[Site], what: str, attempt: Attempt | None = None) -> str:
    """The driver goes on after something that it does not know, and does the attempt that came with it."""
    if attempt is not None:
        await succeeded(rig, attempt, what)
    await rig.works(what)
    return f"{what} did not disturb it"


async def away(rig: Rig[Site], seconds: float) -> None:
    """The server is killed, and comes back."""
    await rig.site.go_away()
    await asyncio.sleep(seconds)
    await rig.site.come_back()


def so_many(count: int, what: str) -> str:
    """A number and its noun."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _same(got: Any, wanted: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but not True."""
    if isinstance(wanted, dict):
        return isinstance(got, dict) and got.keys() == wanted.keys() and all(_same(got[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list):
        return isinstance(got, list) and len(got) == len(wanted) and all(map(_same, got, wanted))
    return isinstance(got, bool) == isinstance(wanted, bool) and bool(got == wanted)


def _expect_named(attempt: Attempt, answer: Answer) -> None:
    if answer.named != attempt.named:
        raise Unmet(
            f"a result with run, step, attempt and token of attempt {attempt.number}: {_shown(attempt)}",
            f"one came with {_shown(answer)}",
        )


def _shown(named: Attempt | Answer) -> str:
    run, step, number, token = named.named
    return f"{run or '-'}/{step or '-'}/{number} {token or '(no token)'}"


def _shortened(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, …" if len(numbers) > 8 else shown or "none"
