"""`conveyor delete`, and its short forms for runs, pipelines and drivers."""

import click

from conveyor.cli import batch
from conveyor.cli.commands.files import RECURSIVE, read
from conveyor.cli.complete import complete_pipeline, complete_ref, complete_run, complete_schedule
from conveyor.cli.kinds import DRIVER, PIPELINE, RUN, SCHEDULE, kind_of
from conveyor.cli.objects import Clients, remove
from conveyor.cli.options import command, settings
from conveyor.cli.refs import Ref, parse_refs, ref
from conveyor.cli.session import run
from conveyor.sdk import Client

_IGNORE = click.option("--ignore-not-found", is_flag=True, help="What is not there is no error.")


@command("delete")
@click.argument("words", metavar="[KIND NAME…]", nargs=-1, shell_complete=complete_ref)
@click.option("-f", "--filename", "names", metavar="FILE|DIR|-", multiple=True, help="Delete what files describe.")
@RECURSIVE
@_IGNORE
def delete(words: tuple[str, ...], names: tuple[str, ...], ignore_not_found: bool) -> None:
    """Delete objects: by kind and names, or all that files describe, schedules and resources first."""
    if names and words and kind_of(words[0]) is not None:
        raise click.UsageError("give either KIND NAME… or -f FILE")
    if names:
        # Behind -f, a shell's pattern has become several words.
        _delete([(each.object.namespace, each.ref) for each in reversed(read((*names, *words)))], ignore_not_found)
    elif words:
        _delete([("", each) for each in parse_refs(words)], ignore_not_found)
    else:
        raise click.UsageError("which? give KIND NAME… or -f FILE")


@command("delete")
@click.argument("run_ids", metavar="RUN…", nargs=-1, required=True, shell_complete=complete_run)
@_IGNORE
def delete_run(run_ids: tuple[str, ...], ignore_not_found: bool) -> None:
    """Delete finished runs with their logs."""
    _delete([("", ref(RUN, each)) for each in run_ids], ignore_not_found)


@command("delete")
@click.argument("names", metavar="PIPELINE…", nargs=-1, required=True, shell_complete=complete_pipeline)
@_IGNORE
def delete_pipeline(names: tuple[str, ...], ignore_not_found: bool) -> None:
    """Delete pipelines; runs under way go on."""
    _delete([("", ref(PIPELINE, each)) for each in names], ignore_not_found)


@command("delete")
@click.argument("names", metavar="SCHEDULE…", nargs=-1, required=True, shell_complete=complete_schedule)
@_IGNORE
def delete_schedule(names: tuple[str, ...], ignore_not_found: bool) -> None:
    """Delete schedules; runs that they started go on."""
    _delete([("", ref(SCHEDULE, each)) for each in names], ignore_not_found)


@command("delete")
@click.argument("names", metavar="DRIVER…", nargs=-1, required=True, shell_complete=complete_ref)
@_IGNORE
def delete_driver(names: tuple[str, ...], ignore_not_found: bool) -> None:
    """Forget drivers that have no connected worker."""
    _delete([("", ref(DRIVER, each)) for each in names], ignore_not_found)


def _delete(refs: list[tuple[str, Ref]], ignore_not_found: bool) -> None:
    options = settings()
    results = batch.Results(options)

    async def work(client: Client) -> None:
        async with Clients(options, client) as clients:

            async def one(item: tuple[str, Ref]) -> None:
                namespace, which = item
                await remove(await clients.of(namespace), which)
                results.add(which.label, "deleted", {**which.value, "outcome": "DELETED"})

            try:
                await batch.each(refs, lambda item: item[1].label, one, missing_is_fine=ignore_not_found)
            finally:
                results.close()

    run(options, work)
