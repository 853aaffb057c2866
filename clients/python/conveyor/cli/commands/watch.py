"""`conveyor run watch` and `conveyor run wait`."""

import asyncio
from contextlib import aclosing

import click

from conveyor.cli import batch
from conveyor.cli.commands.get import run_resource, run_states
from conveyor.cli.complete import complete_pipeline, complete_resource, complete_run
from conveyor.cli.dispatch import report
from conveyor.cli.encode import encode_object
from conveyor.cli.failures import Exit, Interrupted
from conveyor.cli.following import (
    first_look,
    give_up_option,
    outcome_of,
    print_ended,
    told_to_go_on,
    watch_to_end,
)
from conveyor.cli.options import Settings, command, pairs, settings
from conveyor.cli.output import print_value
from conveyor.cli.progress import progress
from conveyor.cli.refs import parse_run
from conveyor.cli.session import run
from conveyor.cli.values import seconds_option
from conveyor.sdk import Client
from conveyor.sdk.errors import ConveyorError
from conveyor.v1.run_pb2 import Run

_TIMEOUT = click.option("--timeout", metavar="DURATION", callback=seconds_option, help="How long to wait, e.g. 10m.")


@command("watch")
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_run)
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Only runs with this label.")
@click.option("--definition", metavar="NAME", default="", help="Only runs of resources of this definition.")
@click.option("--pipeline", metavar="NAME", default="", shell_complete=complete_pipeline, help="Only on this pipeline.")
@click.option(
    "--resource", metavar="DEFINITION/NAME", default="", shell_complete=complete_resource, help="Only of this resource."
)
@click.option("--state", "states", metavar="STATE", multiple=True, help="Only runs in this state.")
@_TIMEOUT
@give_up_option
def watch(
    run_id: str | None, timeout: float | None, give_up_after: float, labels: tuple[str, ...], **filters: object
) -> None:
    """Follow a run until its end, or all runs as they change, until Ctrl-C.

    With a run the exit code is the run's.
    """
    options = settings()
    if run_id is None:
        if timeout is not None:
            raise click.UsageError("--timeout goes with a run")
        _watch_all(options, pairs(labels, "-l"), give_up_after, **filters)  # type: ignore[arg-type]
        return
    if labels or any(filters.values()):
        raise click.UsageError("filters go without a run")
    wanted = parse_run(run_id)

    async def work(client: Client) -> Run:
        await first_look(client, wanted)
        return await watch_to_end(options, client, wanted, timeout, give_up_after)

    try:
        ended = run(options, work)
    except Interrupted:
        told_to_go_on(options, [wanted])
        raise
    batch.finish([outcome_of(ended)])


def _watch_all(
    options: Settings,
    labels: dict[str, str],
    give_up_after: float,
    definition: str,
    pipeline: str,
    resource: str,
    states: tuple[str, ...],
) -> None:
    of_definition, of_resource = run_resource(resource, definition)
    wanted = run_states(states)

    async def work(client: Client) -> None:
        # As a first look at a run: a server that was never there is not waited for.
        await client.server_info()
        updates = client.runs.watch_all(
            pipeline=pipeline,
            definition=of_definition,
            resource=of_resource,
            states=wanted,
            labels=labels,
            give_up_after=give_up_after,
        )
        with progress(options, many=True) as show:
            async with aclosing(updates):
                async for update in updates:
                    show.update(update)

    run(options, work)


@command("wait")
@click.argument("run_ids", metavar="RUN…", nargs=-1, required=True, shell_complete=complete_run)
@_TIMEOUT
@give_up_option
def wait(run_ids: tuple[str, ...], timeout: float | None, give_up_after: float) -> None:
    """Wait until all of the runs have ended.

    The exit code is the run's; with several, the worst: error, connection given up, timeout, failed, cancelled, ok.
    """
    options = settings()
    wanted = list(dict.fromkeys(map(parse_run, run_ids)))
    ended: dict[str, Run] = {}

    async def one(client: Client, run_id: str) -> Exit:
        try:
            await first_look(client, run_id)
            ended[run_id] = await client.runs.wait(run_id, timeout, give_up_after=give_up_after)
        except ConveyorError as error:
            return report(error, f"run/{run_id}" if len(wanted) > 1 else "")
        if options.output in {"table", "name"}:
            print_ended(options, ended[run_id])
        return outcome_of(ended[run_id])

    async def work(client: Client) -> list[Exit]:
        return await asyncio.gather(*(one(client, run_id) for run_id in wanted))

    try:
        codes = run(options, work)
    except Interrupted:
        told_to_go_on(options, [run_id for run_id in wanted if run_id not in ended])
        raise
    if options.output in {"json", "yaml"}:
        found = [encode_object(ended[run_id]) for run_id in wanted if run_id in ended]
        if len(wanted) > 1:
            print_value(options, found)
        elif found:
            print_value(options, found[0])
    batch.finish(codes)
