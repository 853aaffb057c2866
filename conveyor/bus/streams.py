"""The three streams: made when they are missing, adjusted when settings differ, never taken from somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from datetime import timedelta
from typing import cast

import structlog

from conveyor.bus.errors import ApiError, BusConflict
from conveyor.bus.jetstream import NAME_IN_USE, SUBJECTS_OVERLAP, JetStream, JsonObject
from conveyor.bus.options import StreamSettings
from conveyor.bus.subjects import LOGS_STREAM, MESSAGES_STREAM, PIPELINE_STREAM, STREAM_SUBJECTS

_log = structlog.get_logger("conveyor.bus")

NAMES = (PIPELINE_STREAM, MESSAGES_STREAM, LOGS_STREAM)

_DELETION_S = 1.0
"""The broker says that a stream is gone while it still removes its files: one made meanwhile would lose its own."""

_OWN_ACCOUNT = "or give Conveyor a NATS account of its own"


def configs(settings: StreamSettings) -> dict[str, JsonObject]:
    """What each stream should be like, in JetStream's words."""
    common: JsonObject = {
        "storage": "file",
        # With discard new, one dead driver would stop the whole belt.
        "discard": "old",
        "num_replicas": settings.replicas,
        "allow_direct": True,
    }
    window = settings.duplicate_window
    return {
        PIPELINE_STREAM: common
        | {
            "name": PIPELINE_STREAM,
            "subjects": STREAM_SUBJECTS[PIPELINE_STREAM],
            "retention": "workqueue",
            "max_age": _ns(settings.pipeline_max_age),
            "max_bytes": settings.pipeline_max_bytes,
            "duplicate_window": _ns(min(window, settings.pipeline_max_age or window)),
        },
        MESSAGES_STREAM: common
        | {
            "name": MESSAGES_STREAM,
            "subjects": STREAM_SUBJECTS[MESSAGES_STREAM],
            "retention": "interest",
            "max_age": _ns(settings.messages_max_age),
            "max_bytes": settings.messages_max_bytes,
            "duplicate_window": _ns(min(window, settings.messages_max_age or window)),
            # Older drivers ask for a consumer that JetStream would drop, with all that waits for it, five seconds
            # after the driver has gone. This becomes their default.
            "consumer_limits": {"inactive_threshold": _ns(settings.driver_inactive_threshold)},
        },
        LOGS_STREAM: common
        | {
            "name": LOGS_STREAM,
            "subjects": STREAM_SUBJECTS[LOGS_STREAM],
            "retention": "limits",
            "max_age": _ns(settings.logs_max_age),
            "max_bytes": settings.logs_max_bytes,
            "duplicate_window": _ns(min(window, settings.logs_max_age or window)),
        },
    }


async def ensure(jetstream: JetStream, settings: StreamSettings, before: Set[str] = frozenset()) -> dict[str, str]:
    """Makes the streams what they should be; returns when each was created, as the broker says it.

    `before` are those that were there at an earlier look. Raises BusConflict when somebody else's stream stands in the
    way.
    """
    wanted = configs(settings)
    missing: set[str] = set()
    # All before any is touched: an older server may still run on what stands in the way.
    for name, config in wanted.items():
        info = await jetstream.stream(name)
        if info is None:
            missing.add(name)
        else:
            _refuse_foreign(info["config"], config)
        if info is None or info["config"]["subjects"] != config["subjects"]:
            await _refuse_holders(jetstream, config)
    if missing & before:
        await _deletion_ended()
    return {name: await _ensure(jetstream, config, new=name in missing) for name, config in wanted.items()}


async def _ensure(jetstream: JetStream, wanted: JsonObject, *, new: bool) -> str:
    name = wanted["name"]
    info = await jetstream.stream(name)
    try:
        if info is None:
            if not new:  # it was there a moment ago
                await _deletion_ended()
            info = await jetstream.call(f"STREAM.CREATE.{name}", wanted)
            _log.info("bus.stream.created", stream=name)
        else:
            current = info["config"]
            if any(current.get(key) != value for key, value in wanted.items()):
                info = await jetstream.call(f"STREAM.UPDATE.{name}", current | wanted)
                _log.info("bus.stream.updated", stream=name)
    except ApiError as error:
        if error.err_code == NAME_IN_USE:
            # Another replica was faster, with settings of its own.
            return await _ensure(jetstream, wanted, new=False)
        if error.err_code == SUBJECTS_OVERLAP:
            await _refuse_holders(jetstream, wanted)
        raise
    return cast(str, info["created"])


async def _deletion_ended() -> None:
    """Nothing tells of it, so this waits for longer than it takes."""
    await asyncio.sleep(_DELETION_S)


def _refuse_foreign(current: JsonObject, wanted: JsonObject) -> None:
    """An older server's `messages` holds a part of our subjects and becomes ours; nothing else of our name may."""
    name = wanted["name"]
    foreign = sorted(set(current.get("subjects") or []) - set(wanted["subjects"]))
    differs = [key for key in ("retention", "storage") if current.get(key) != wanted[key]]
    if not foreign and not differs and not current.get("mirror") and not current.get("sources"):
        return
    what = f"subjects {', '.join(foreign)}" if foreign else ", ".join(f"{key} {current.get(key)}" for key in differs)
    raise BusConflict(
        f"stream `{name}` is not Conveyor's ({what or 'a copy of another stream'}): "
        f"stop whoever uses it and remove it (`nats stream rm {name}`), {_OWN_ACCOUNT}"
    )


async def _refuse_holders(jetstream: JetStream, wanted: JsonObject) -> None:
    """Names the streams that hold subjects of ours, and says what to do."""
    holders: dict[str, list[str]] = {}
    for subject in wanted["subjects"]:
        for stream in await jetstream.streams_with(subject):
            config = stream["config"]
            if config["name"] != wanted["name"]:
                holders[config["name"]] = list(config.get("subjects") or [])
    if not holders:
        return
    held = ", ".join(f"`{name}` ({', '.join(subjects)})" for name, subjects in sorted(holders.items()))
    removals = " and ".join(f"`nats stream rm {name}`" for name in sorted(holders))
    raise BusConflict(
        f"the subjects of stream `{wanted['name']}` are held by {held}, perhaps an older server's: "
        f"stop that server, let what is in it be done, and remove it ({removals}), {_OWN_ACCOUNT}"
    )


def _ns(duration: timedelta) -> int:
    """Nanoseconds, as JetStream counts."""
    return int(duration / timedelta(microseconds=1)) * 1000
