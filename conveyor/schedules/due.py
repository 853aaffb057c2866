"""Which of the times that have passed start a run now, and which never will. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from conveyor.schedules.cron import Timing
from conveyor.v1 import schedule_pb2

SECOND = 1_000_000
DEADLINE = 300 * SECOND
"""How late a run may start when the schedule doesn't say."""
MISSED_AFTER = 60 * SECOND
"""How late it may start when missed times are skipped: servers need some seconds to take over from each other."""
MOST = 100
"""So many times that were missed may each start a run."""
CLOCKS_APART = 7200 * SECOND
"""A clock that is set back by no more than this starts nothing twice; after more, what it said before means nothing."""

_COUNTED = 1000
_FIRST_LOOK_BACK = MOST * 60 * SECOND


@dataclass(frozen=True, slots=True)
class Due:
    """What has come due. All times up to `decided` are done with once this is stored."""

    time: int
    """The time whose run may start now; 0 when there is none."""
    missed: int
    """How many times before it start none; of very many not all are counted."""
    decided: int


def decide(
    timing: Timing,
    missed: schedule_pb2.MissedRuns.ValueType,
    deadline: int,
    decided: int,
    now: int,
) -> Due | None:
    """What has come due after `decided`; None when nothing has. `deadline` in microseconds; 0: the default."""
    if is_ahead(decided, now):
        return Due(0, 0, now)
    times, count = _passed(timing, decided, now)
    if not times:
        return None
    late = MISSED_AFTER if missed == schedule_pb2.MISSED_RUNS_SKIP else deadline or DEADLINE
    fitting = [time for time in times if now - time <= late]
    if not fitting:
        return Due(0, count, times[-1])
    if missed == schedule_pb2.MISSED_RUNS_RUN_ALL:
        return Due(fitting[0], count - len(fitting), fitting[0])
    return Due(fitting[-1], count - 1, fitting[-1])


def next_time(timing: Timing, decided: int, now: int) -> int:
    """When the next run is due; 0: never."""
    return timing.next(now if is_ahead(decided, now) else decided)


def is_ahead(decided: int, now: int) -> bool:
    """Whether `decided` comes from a clock that was so far ahead that it means nothing."""
    return decided > now + CLOCKS_APART


def _passed(timing: Timing, since: int, now: int) -> tuple[list[int], int]:
    """The last of the times after `since` that have come, at most MOST, and how many there were."""
    times, count = _collect(timing, since, now)
    if count < _COUNTED:
        return times, count
    # There are very many: look at the end only.
    back = _FIRST_LOOK_BACK
    while True:
        times, found = _collect(timing, max(since, now - back), now)
        if found >= MOST or now - back <= since:
            return times, max(count, found)
        back *= 2


def _collect(timing: Timing, since: int, now: int) -> tuple[list[int], int]:
    last: deque[int] = deque(maxlen=MOST)
    count = 0
    for time in timing.after(since):
        if time > now:
            break
        last.append(time)
        count += 1
        if count == _COUNTED:
            break
    return list(last), count
