"""`conveyor get` and `conveyor list`, and their short forms for runs, pipelines and drivers."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import click
from google.protobuf.message import Message

from conveyor.cli import tables
from conveyor.cli.complete import complete_kind, complete_pipeline, complete_ref, complete_run, complete_schedule
from conveyor.cli.decode import enum_value
from conveyor.cli.describe import Related, describe
from conveyor.cli.durations import parse_time
from conveyor.cli.kinds import DEFINITION, DRIVER, PIPELINE, RESOURCE, RUN, SCHEDULE, Kind
from conveyor.cli.objects import fetch
from conveyor.cli.options import command, pairs, settings
from conveyor.cli.output import Row, print_object, print_objects
from conveyor.cli.refs import Ref, parse_kind, parse_refs, parse_resource, parse_run, ref
from conveyor.cli.session import run
from conveyor.cli.times import now
from conveyor.sdk import Client
from conveyor.v1.run_pb2 import Run, RunState

_TABLES: dict[str, tuple[Row, Callable[[Message, datetime], Row]]] = {
    DEFINITION.name: (tables.DEFINITIONS, tables.definition_row),
    PIPELINE.name: (tables.PIPELINES, tables.pipeline_row),
    RESOURCE.name: (tables.RESOURCES, tables.resource_row),
    SCHEDULE.name: (tables.SCHEDULES, tables.schedule_row),
    RUN.name: (tables.RUNS, tables.run_row),
    DRIVER.name: (tables.DRIVERS, tables.driver_row),
}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which objects of a kind to list."""

    labels: tuple[str, ...] = ()
    definition: str = ""
    pipeline: str = ""
    resource: str = ""
    states: tuple[str, ...] = ()
    since: str = ""
    parent: str = ""
    caller: str = ""
    schedule: str = ""
    limit: int = 0


_FITTING = {
    DEFINITION.name: {"labels"},
    PIPELINE.name: {"labels"},
    RESOURCE.name: {"labels", "definition"},
    SCHEDULE.name: {"labels"},
    RUN.name: {"labels", "definition", "pipeline", "resource", "states", "since", "parent", "caller", "schedule"},
    DRIVER.name: set[str](),
}
_OPTIONS = {"labels": "-l", "states": "--state"}

_RETRIED = {RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED}
_RETRIES = 5
"""Runs that retry a run, the newest ones, that are shown with it."""
_CHILDREN = 100
"""The same of those that its steps started."""


@command("get")
@click.argument("words", metavar="KIND NAME", nargs=-1, required=True, shell_complete=complete_ref)
@click.option("--generation", type=click.IntRange(min=1), default=None, help="An earlier generation of it.")
@click.option("--history", is_flag=True, help="All generations of a resource that are kept.")
def get(words: tuple[str, ...], generation: int | None, history: bool) -> None:
    """Show one object.

    KIND is definition, pipeline, resource, schedule, run or driver. A resource is named DEFINITION/NAME. KIND/NAME
    in one word is fine too.
    """
    refs = parse_refs(words)
    if len(refs) != 1:
        raise click.UsageError("give the name of one object; `conveyor list` shows several")
    if refs[0].kind in {RUN, DRIVER} and generation is not None:
        raise click.UsageError(f"a {refs[0].kind.word} has no generations")
    if history:
        _history(refs[0])
    else:
        _get(refs[0], generation or 0)


@command("get")
@click.argument("run_id", metavar="RUN", shell_complete=complete_run)
def get_run(run_id: str) -> None:
    """Show a run with its steps."""
    _get(ref(RUN, run_id), 0)


@command("get")
@click.argument("name", metavar="PIPELINE", shell_complete=complete_pipeline)
@click.option("--generation", type=click.IntRange(min=1), default=None, help="An earlier generation of it.")
def get_pipeline(name: str, generation: int | None) -> None:
    """Show a pipeline with its steps."""
    _get(ref(PIPELINE, name), generation or 0)


@command("get")
@click.argument("name", metavar="SCHEDULE", shell_complete=complete_schedule)
@click.option("--generation", type=click.IntRange(min=1), default=None, help="An earlier generation of it.")
def get_schedule(name: str, generation: int | None) -> None:
    """Show a schedule with what came of it."""
    _get(ref(SCHEDULE, name), generation or 0)


@command("get")
@click.argument("name", metavar="DRIVER", shell_complete=complete_ref)
def get_driver(name: str) -> None:
    """Show a driver with its workers."""
    _get(ref(DRIVER, name), 0)


_PARENT = click.option(
    "--parent", metavar="RUN", default="", shell_complete=complete_run, help="Only runs that retry this one."
)
_CALLER = click.option(
    "--caller", metavar="RUN", default="", shell_complete=complete_run, help="Only runs that steps of this one started."
)
_SCHEDULE = click.option(
    "--schedule",
    metavar="NAME",
    default="",
    shell_complete=complete_schedule,
    help="Only runs that this schedule started.",
)


@command("list")
@click.argument("kind", metavar="KIND", shell_complete=complete_kind)
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Only those with this label.")
@click.option("--definition", metavar="NAME", default="", help="Only resources of this definition, and runs of those.")
@click.option("--pipeline", metavar="NAME", default="", help="Only runs on this pipeline.")
@click.option("--resource", metavar="DEFINITION/NAME", default="", help="Only runs of this resource.")
@click.option("--state", "states", metavar="STATE", multiple=True, help="Only runs in this state.")
@click.option("--since", metavar="TIME", default="", help='Only runs created since then: "2h", or a time.')
@_PARENT
@_CALLER
@_SCHEDULE
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
def list_(kind: str, limit: int | None, **filters: object) -> None:
    """List the objects of a kind: definitions, pipelines, resources, schedules, runs or drivers."""
    _list(parse_kind(kind), Filters(limit=limit or 0, **filters))  # type: ignore[arg-type]


@command("list")
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Only those with this label.")
@click.option("--definition", metavar="NAME", default="", help="Only of resources of this definition.")
@click.option("--pipeline", metavar="NAME", default="", help="Only on this pipeline.")
@click.option("--resource", metavar="DEFINITION/NAME", default="", help="Only of this resource.")
@click.option("--state", "states", metavar="STATE", multiple=True, help="Only in this state.")
@click.option("--since", metavar="TIME", default="", help='Only those created since then: "2h", or a time.')
@_PARENT
@_CALLER
@_SCHEDULE
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
def list_runs(limit: int | None, **filters: object) -> None:
    """List runs, newest first."""
    _list(RUN, Filters(limit=limit or 0, **filters))  # type: ignore[arg-type]


@command("list")
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Only those with this label.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
def list_pipelines(labels: tuple[str, ...], limit: int | None) -> None:
    """List pipelines."""
    _list(PIPELINE, Filters(labels, limit=limit or 0))


@command("list")
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Only those with this label.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
def list_schedules(labels: tuple[str, ...], limit: int | None) -> None:
    """List schedules."""
    _list(SCHEDULE, Filters(labels, limit=limit or 0))


@command("list")
def list_drivers() -> None:
    """List the drivers that made themselves known."""
    _list(DRIVER, Filters())


def _get(which: Ref, generation: int) -> None:
    options = settings()

    async def work(client: Client) -> tuple[Message, Related]:
        message = await fetch(client, which, generation)
        related = Related()
        if isinstance(message, Run) and options.output == "table":
            if message.state in _RETRIED:
                related.retries = await _runs(client.runs.list(parent_run=message.id), _RETRIES)
            if any(step.attempt and step.child_run for step in message.steps):
                related.children = await _runs(client.runs.children(message.id), _CHILDREN)
        return message, related

    message, related = run(options, work)
    print_object(options, message, lambda now: describe(message, now, related))


def _history(which: Ref) -> None:
    if which.kind is not RESOURCE:
        raise click.UsageError("only resources have a history that can be listed")
    options = settings()
    found = run(options, lambda client: _collected(client.resources.generations(which.definition, which.name), 0))
    print_objects(options, found, *_TABLES[RESOURCE.name], "generations")


def _list(kind: Kind, filters: Filters) -> None:
    for name in ("labels", "definition", "pipeline", "resource", "states", "since", "parent", "caller", "schedule"):
        if getattr(filters, name) and name not in _FITTING[kind.name]:
            raise click.UsageError(f"{_OPTIONS.get(name, f'--{name}')} does not fit {kind.word}s")
    options = settings()
    found = run(options, lambda client: _collected(_listing(client, kind, filters), filters.limit))
    print_objects(options, found, *_TABLES[kind.name], f"{kind.word}s")


def _listing(client: Client, kind: Kind, filters: Filters) -> AsyncIterator[Message]:
    labels = pairs(filters.labels, "-l")
    page = min(filters.limit, 1000) if filters.limit else 1000
    if kind is DEFINITION:
        return client.definitions.list(labels=labels, page_size=page)
    if kind is PIPELINE:
        return client.pipelines.list(labels=labels, page_size=page)
    if kind is RESOURCE:
        return client.resources.list(filters.definition, labels=labels, page_size=page)
    if kind is SCHEDULE:
        return client.schedules.list(labels=labels, page_size=page)
    if kind is DRIVER:
        return client.drivers.list(page_size=page)
    definition, resource = run_resource(filters.resource, filters.definition)
    return client.runs.list(
        pipeline=filters.pipeline,
        definition=definition,
        resource=resource,
        states=run_states(filters.states),
        labels=labels,
        created_from=_since(filters.since),
        parent_run=parse_run(filters.parent) if filters.parent else "",
        caller_run=parse_run(filters.caller) if filters.caller else "",
        schedule=filters.schedule,
        page_size=page,
    )


def run_resource(resource: str, definition: str) -> tuple[str, str]:
    """Definition and name for a filter of runs."""
    if not resource:
        return definition, ""
    if definition:
        raise click.UsageError("--resource names its definition itself; leave --definition out")
    return parse_resource(resource)


def run_states(states: Sequence[str]) -> list[RunState.ValueType]:
    """The states that were named, each by its name or several with commas between them."""
    try:
        return [
            RunState.ValueType(enum_value(RunState.DESCRIPTOR, word))
            for state in states
            for word in state.upper().split(",")
        ]
    except ValueError as error:
        raise click.UsageError(f"--state: {error}") from None


def _since(text: str) -> datetime | None:
    try:
        return parse_time(text, now()) if text else None
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from None


async def _runs(listing: AsyncIterator[Run], limit: int) -> list[Run]:
    return cast(list[Run], await _collected(listing, limit))


async def _collected(listing: AsyncIterator[Message], limit: int) -> list[Message]:
    found: list[Message] = []
    async for message in listing:
        found.append(message)
        if len(found) == limit:
            break
    return found
