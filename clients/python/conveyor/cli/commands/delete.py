"""`conveyor delete`, and its short forms for runs and drivers."""

import click
from google.protobuf.message import Message

from conveyor.cli import batch
from conveyor.cli.complete import complete_ref, complete_run
from conveyor.cli.failures import CliError
from conveyor.cli.kinds import DEFINITION, DRIVER, PIPELINE, RESOURCE, RUN
from conveyor.cli.manifest import load
from conveyor.cli.options import command, settings
from conveyor.cli.refs import Ref, parse_refs, ref
from conveyor.cli.session import new_client, run
from conveyor.cli.sources import read_sources
from conveyor.sdk import Client
from conveyor.v1.resource_pb2 import Resource

_IGNORE = click.option("--ignore-not-found", is_flag=True, help="What is not there is no error.")


@command("delete")
@click.argument("words", metavar="[KIND NAME…]", nargs=-1, shell_complete=complete_ref)
@click.option("-f", "--filename", "names", metavar="FILE|DIR|-", multiple=True, help="Delete what files describe.")
@_IGNORE
def delete(words: tuple[str, ...], names: tuple[str, ...], ignore_not_found: bool) -> None:
    """Delete objects: by kind and names, or all that files describe, resources first."""
    if bool(words) == bool(names):
        raise click.UsageError("give either KIND NAME… or -f FILE")
    if words:
        _delete([("", each) for each in parse_refs(words)], ignore_not_found)
        return
    found = []
    for manifest in reversed(load(read_sources(names))):
        definition = manifest.object.definition if isinstance(manifest.object, Resource) else ""
        found.append((manifest.object.namespace, Ref(manifest.kind, manifest.object.name, definition)))
    _delete(found, ignore_not_found)


@command("delete")
@click.argument("run_ids", metavar="RUN…", nargs=-1, required=True, shell_complete=complete_run)
@_IGNORE
def delete_run(run_ids: tuple[str, ...], ignore_not_found: bool) -> None:
    """Delete finished runs with their logs."""
    _delete([("", ref(RUN, each)) for each in run_ids], ignore_not_found)


@command("delete")
@click.argument("names", metavar="DRIVER…", nargs=-1, required=True, shell_complete=complete_ref)
@_IGNORE
def delete_driver(names: tuple[str, ...], ignore_not_found: bool) -> None:
    """Forget drivers that have no connected worker."""
    _delete([("", ref(DRIVER, each)) for each in names], ignore_not_found)


def _delete(refs: list[tuple[str, Ref]], ignore_not_found: bool) -> None:
    options = settings()
    results = batch.Results(options)
    for namespace, which in refs:
        if namespace and options.namespace and namespace != options.namespace:
            raise CliError(f"{which.label} is of namespace {namespace}, but -n says {options.namespace}")

    async def work(client: Client) -> None:
        async def one(item: tuple[str, Ref]) -> None:
            namespace, which = item
            if namespace:
                async with new_client(options, namespace) as other:
                    await remove(other, which)
            else:
                await remove(client, which)
            value: dict[str, object] = {"kind": which.kind.name, "name": which.name}
            if which.definition:
                value["definition"] = which.definition
            results.add(which.label, "deleted", {**value, "outcome": "DELETED"})

        try:
            await batch.each(refs, lambda item: item[1].label, one, missing_is_fine=ignore_not_found)
        finally:
            results.close()

    run(options, work)


async def remove(client: Client, which: Ref) -> Message:
    """Delete an object and return it as it was."""
    if which.kind is DEFINITION:
        return await client.definitions.delete(which.name)
    if which.kind is PIPELINE:
        return await client.pipelines.delete(which.name)
    if which.kind is RESOURCE:
        return await client.resources.delete(which.definition, which.name)
    if which.kind is RUN:
        return await client.runs.delete(which.name)
    return await client.drivers.delete(which.name)
