"""Invariant 7: what watchers and readers of logs saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from conveyor.v1.log_pb2 import LogLine
from tests.faults.history import ENDED, Event, History, Violation

_AGAIN = "[this attempt was given out again"


def nothing_is_missed_silently(history: History) -> Iterator[Violation]:
    """7: Watchers see every state in order, or a reset or skip. Logs are contiguous, or the loss is marked."""
    yield from _watches(history)
    yield from _logs(history)
    yield from _unstored(history)


def _watches(history: History) -> Iterator[Violation]:
    known: dict[str, set[int]] = defaultdict(set)
    for event in history.of("saw", "ok"):
        if "etag" in event:
            known[event["run"]].add(event["etag"])
    seen: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in history.of("saw"):
        seen[event["watcher"], event["run"]].append(event)
    yield from _whole_segments(history, known)
    # Those that broke off, and those that are not told what happened while they had to begin anew.
    raw = {event["watcher"] for event in history.of("anew")}
    broken = {event["watcher"] for event in history.of("watch-error")} | raw
    for (watcher, run), events in seen.items():
        for before, after in pairwise(events):
            yield from _step(watcher, run, before, after, set() if watcher in raw else known[run])
        last = events[-1]
        over = last["deleted"] or last["state"] in ENDED or watcher in broken
        if not over and run in history.runs and run not in history.unfinished:
            yield Violation(7, run, f"{watcher} never saw its end; the last was {last['state']}")


def _step(watcher: str, run: str, before: Event, after: Event, known: set[int]) -> Iterator[Violation]:
    if after["deleted"] or before["deleted"]:
        return
    if after["etag"] < before["etag"]:
        yield Violation(7, run, f"{watcher} saw {before['etag']:x}, then the older {after['etag']:x}")
    missed = sorted(etag for etag in known if before["etag"] < etag < after["etag"])
    if missed and not after["skipped"] and not after["reset"]:
        told = ", ".join(f"{etag:x}" for etag in missed)
        yield Violation(7, run, f"{watcher} saw {before['etag']:x}, then {after['etag']:x}; others saw {told} between")


def _whole_segments(history: History, known: dict[str, set[int]]) -> Iterator[Violation]:
    """Between two times that it had to begin anew, a raw watcher saw every revision of every run."""
    segments: dict[str, list[Event]] = {}
    for event in history.of("anew", "saw"):
        watcher = event["watcher"]
        if event["kind"] == "anew":
            yield from _whole(segments.pop(watcher, []), known)
            segments[watcher] = []
        elif watcher in segments:
            segments[watcher].append(event)
    for events in segments.values():
        yield from _whole(events, known)


def _whole(events: list[Event], known: dict[str, set[int]]) -> Iterator[Violation]:
    changes = [event["etag"] for event in events if not event["reset"] and not event["deleted"]]
    if not changes:
        return
    told = {(event["run"], event["etag"]) for event in events}
    excused = {event["run"] for event in events if event["skipped"]}
    # What a run was before the snapshot is not told; the snapshot may be newer than the first changes behind it.
    shown = {event["run"]: event["etag"] for event in events if event["reset"]}
    for run, etags in known.items():
        begin = max(changes[0], shown.get(run, 0))
        missed = [etag for etag in sorted(etags) if begin <= etag <= changes[-1] and (run, etag) not in told]
        if missed and run not in excused:
            which = ", ".join(f"{etag:x}" for etag in missed)
            yield Violation(7, run, f"{events[0]['watcher']} never saw {which}, between {begin:x} and {changes[-1]:x}")


def _logs(history: History) -> Iterator[Violation]:
    began: dict[tuple[str, str, int], list[Event]] = defaultdict(list)
    for event in history.of("began"):
        began[event["run"], event["step"], event["attempt"]].append(event)
    for run, lines in history.logs.items():
        attempts: dict[tuple[str, int], list[LogLine]] = defaultdict(list)
        for line in lines:
            attempts[line.step, line.attempt].append(line)
        for (step, attempt), mine in attempts.items():
            yield from _contiguous(run, f"{step}, attempt {attempt}", mine)
            begun = began[run, step, attempt]
            if len(begun) == 1:
                yield from _true(run, f"{step}, attempt {attempt}", mine, begun[0]["token"])


_SPOILERS = frozenset({"nats", "network", "disk"})
"""Components without which lines are not stored. A server that is stopped may take its time for the broker's."""


def _unstored(history: History) -> Iterator[Violation]:
    """Lines that were sent before a result are stored before it is acked, unless the broker was away meanwhile."""
    trouble: list[tuple[float, float]] = []
    struck: dict[str, float] = {}
    for event in history.of("strike", "healed"):
        if event["kind"] == "strike":
            struck[event["fault"]] = event["at"]
        elif event["component"] in _SPOILERS or event["fault"] == "freeze-server":
            trouble.append((struck[event["fault"]], event["at"] + 1))
    began = {(e["run"], e["step"], e["attempt"], e["token"]): e for e in history.of("began")}
    finished = {(e["run"], e["step"], e["attempt"], e["token"]) for e in history.of("answered") if e["answer"] == "ok"}
    for event in history.of("acked"):
        key = event["run"], event["step"], event["attempt"], event["token"]
        if event["disposition"] != "ACCEPTED" or key not in finished or event["run"] not in history.logs:
            continue
        if any(start < event["at"] and began[key]["at"] < end for start, end in trouble):
            continue
        lines = [line for line in history.logs[event["run"]] if (line.step, line.attempt) == key[1:3]]
        last = lines[-1].seq if lines else 0
        if last < began[key]["lines"] or any(line.lost for line in lines):
            text = f"the log of {key[1]}, attempt {key[2]}, was cut at line {last} of {began[key]['lines']}"
            yield Violation(7, event["run"], f"{text}, or parts of it were lost; nothing ailed the broker")


def _contiguous(run: str, whose: str, lines: list[LogLine]) -> Iterator[Violation]:
    last = 0
    for line in lines:
        if line.seq != last + max(line.lost, 1):
            marked = f" (lost {line.lost})" if line.lost else ""
            yield Violation(7, run, f"in the log of {whose}, line {line.seq}{marked} follows line {last}")
        last = line.seq


def _true(run: str, whose: str, lines: list[LogLine], token: str) -> Iterator[Violation]:
    """The lines are those that their only writer wrote, in its order."""
    number = 0
    for line in lines:
        # A ticket whose first delivery nobody received; the SDK cannot know that.
        if line.text.startswith(_AGAIN):
            continue
        number += max(line.lost, 1)
        if not line.lost and line.text != f"{token} {number}":
            yield Violation(7, run, f"line {line.seq} in the log of {whose} is {line.text!r}, not '{token} {number}'")
            return
