"""Completes kinds and names in a shell. The server is asked, but only for a moment, and its absence is no matter."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import click
from click.shell_completion import CompletionItem
from google.protobuf.message import Message

from conveyor.cli.gates import open_gates
from conveyor.cli.kinds import DEFINITION, DRIVER, KINDS, PIPELINE, RESOURCE, RUN, SCHEDULE, Kind, kind_of
from conveyor.cli.options import Settings
from conveyor.cli.refs import parse_run
from conveyor.cli.session import new_client
from conveyor.sdk import Client
from conveyor.sdk.errors import ConveyorError

_PATIENCE = 1.0
_MAX = 200


def complete_kind(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The words for kinds."""
    return [CompletionItem(kind.word) for kind in KINDS if kind.word.startswith(incomplete)]


def complete_ref(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A kind, then names of that kind."""
    words = context.params.get("words") or ()
    parent = context.parent.info_name if context.parent else ""
    kind = kind_of(words[0]) if words else DRIVER if parent == "driver" else None
    if kind is None:
        return complete_kind(context, parameter, incomplete)
    return _names(context, kind, incomplete)


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of runs, the newest first."""
    return _names(context, RUN, incomplete)


def complete_gate(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Gates that wait, of the run that was named before."""
    word = str(context.params.get("run_id") or "")
    return [CompletionItem(name) for name in _asked(context, _gates(word)) if name.startswith(incomplete)]


def complete_resource(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Resources as DEFINITION/NAME."""
    return _names(context, RESOURCE, incomplete)


def complete_pipeline(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of pipelines."""
    return _names(context, PIPELINE, incomplete)


def complete_schedule(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of schedules."""
    return _names(context, SCHEDULE, incomplete)


def _names(context: click.Context, kind: Kind, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _asked(context, _listed(kind, incomplete))]


def _asked(context: click.Context, ask: Callable[[Client], Awaitable[list[str]]]) -> list[str]:
    settings = context.ensure_object(Settings)

    async def asking() -> list[str]:
        async with asyncio.timeout(_PATIENCE), new_client(settings) as client:
            return await ask(client)

    try:
        return asyncio.run(asking())
    except (ConveyorError, TimeoutError, OSError, click.UsageError):
        return []


def _listed(kind: Kind, incomplete: str) -> Callable[[Client], Awaitable[list[str]]]:
    async def ask(client: Client) -> list[str]:
        names: list[str] = []
        async for message in _listing(client, kind):
            name = _name(message, kind)
            if name.startswith(incomplete):
                names.append(name)
            if len(names) == _MAX:
                break
        return names

    return ask


def _gates(word: str) -> Callable[[Client], Awaitable[list[str]]]:
    async def ask(client: Client) -> list[str]:
        return [step.step for step in open_gates(await client.runs.get(parse_run(word)))]

    return ask


def _listing(client: Client, kind: Kind) -> AsyncIterator[Message]:
    if kind is DEFINITION:
        return client.definitions.list()
    if kind is PIPELINE:
        return client.pipelines.list()
    if kind is RESOURCE:
        return client.resources.list()
    if kind is SCHEDULE:
        return client.schedules.list()
    if kind is DRIVER:
        return client.drivers.list()
    return client.runs.list()


def _name(message: Message, kind: Kind) -> str:
    name: str = getattr(message, "id" if kind is RUN else "name")
    return f"{getattr(message, 'definition')}/{name}" if kind is RESOURCE else name  # noqa: B009
