"""`conveyor schedule pause`, `resume` and `trigger`."""

from collections.abc import Awaitable, Callable

import click

from conveyor.cli import batch
from conveyor.cli.complete import complete_schedule
from conveyor.cli.encode import encode_object
from conveyor.cli.following import Following, follow_options, start_and_follow
from conveyor.cli.kinds import SCHEDULE
from conveyor.cli.options import command, settings
from conveyor.cli.refs import ref
from conveyor.cli.session import run
from conveyor.sdk import Client
from conveyor.v1.schedule_pb2 import Schedule


@command("pause")
@click.argument("names", metavar="SCHEDULE…", nargs=-1, required=True, shell_complete=complete_schedule)
def pause(names: tuple[str, ...]) -> None:
    """Have schedules start nothing until they are resumed.

    Files that are applied again undo it, unless they say `paused: true` themselves.
    """
    _change(names, "paused", lambda client, name: client.schedules.pause(name))


@command("resume")
@click.argument("names", metavar="SCHEDULE…", nargs=-1, required=True, shell_complete=complete_schedule)
def resume(names: tuple[str, ...]) -> None:
    """Have schedules start runs again, from now on: what they passed over is not made up for."""
    _change(names, "resumed", lambda client, name: client.schedules.resume(name))


@command("trigger")
@click.argument("name", metavar="SCHEDULE", shell_complete=complete_schedule)
@follow_options
def trigger(name: str, following: Following) -> None:
    """Start a run of a schedule at once, also while it is paused."""
    chosen = ref(SCHEDULE, name).name
    start_and_follow(settings(), lambda client: client.schedules.trigger(chosen), following)


def _change(names: tuple[str, ...], outcome: str, do: Callable[[Client, str], Awaitable[Schedule]]) -> None:
    options = settings()
    results = batch.Results(options)

    async def work(client: Client) -> None:
        async def one(name: str) -> None:
            changed = await do(client, name)
            results.add(f"schedule/{name}", outcome, encode_object(changed))

        try:
            await batch.each([ref(SCHEDULE, each).name for each in names], lambda name: f"schedule/{name}", one)
        finally:
            results.close()

    run(options, work)
