"""`conveyor apply`."""

from contextlib import AsyncExitStack

import click

from conveyor.cli import batch
from conveyor.cli.failures import CliError
from conveyor.cli.manifest import Manifest, load
from conveyor.cli.options import command, settings
from conveyor.cli.session import new_client, run
from conveyor.cli.sources import read_sources
from conveyor.sdk import Client
from conveyor.sdk.errors import FailedPrecondition
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run

_MISSING = frozenset({"UNKNOWN_DEFINITION", "UNKNOWN_PIPELINE"})
_UNCHECKED = ": it needs what the dry run did not create"


@command("apply")
@click.option(
    "-f",
    "--filename",
    "names",
    metavar="FILE|DIR|-",
    multiple=True,
    required=True,
    help="File, folder, or - for standard input. May be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Check everything on the server, change nothing.")
def apply(names: tuple[str, ...], dry_run: bool) -> None:
    """Create or change what files describe.

    All files are checked before the first object is sent. Definitions come first, then pipelines, then resources. An
    object that the server refuses is told; the others are applied all the same.
    """
    options = settings()
    manifests = load(read_sources(names))
    _check_namespaces(manifests, options.namespace)
    results = batch.Results(options)

    async def work(client: Client) -> None:
        async with AsyncExitStack() as stack:
            clients = {"": client}
            for manifest in manifests:
                namespace = manifest.object.namespace
                if namespace not in clients:
                    clients[namespace] = await stack.enter_async_context(new_client(options, namespace))

            async def one(manifest: Manifest) -> None:
                try:
                    outcome, started = await _send(clients[manifest.object.namespace], manifest, dry_run)
                except FailedPrecondition as error:
                    if not dry_run or error.reason not in _MISSING or not _is_missing(manifest, manifests):
                        raise
                    value = {**_value(manifest), "outcome": "UNCHECKED", "dryRun": True}
                    results.add(manifest.label, "not checked", value, extra=_UNCHECKED)
                else:
                    _tell(results, manifest, outcome, started, dry_run)

            try:
                await batch.each(manifests, lambda manifest: f"{manifest.source}: {manifest.label}", one)
            finally:
                results.close()

    run(options, work)


def _is_missing(manifest: Manifest, manifests: list[Manifest]) -> bool:
    """Whether an object needs another one of the same files."""
    thing = manifest.object
    needed = set() if isinstance(thing, ResourceDefinition) else {f"definition/{thing.definition}"}
    if isinstance(thing, Resource):
        needed.add(f"pipeline/{thing.pipeline}")
    return any(other.label in needed and other.object.namespace == thing.namespace for other in manifests)


def _value(manifest: Manifest) -> dict[str, object]:
    value: dict[str, object] = {"kind": manifest.kind.name, "name": manifest.object.name}
    if isinstance(manifest.object, Resource):
        value["definition"] = manifest.object.definition
    return value


def _check_namespaces(manifests: list[Manifest], namespace: str | None) -> None:
    for manifest in manifests:
        other = manifest.object.namespace
        if namespace and other and other != namespace:
            raise CliError(f"{manifest.source}: {manifest.label} is of namespace {other}, but -n says {namespace}")


async def _send(client: Client, manifest: Manifest, dry_run: bool) -> tuple[ApplyOutcome.ValueType, Run | None]:
    thing = manifest.object
    if isinstance(thing, ResourceDefinition):
        return (await client.definitions.apply(thing, validate_only=dry_run)).outcome, None
    if isinstance(thing, Pipeline):
        return (await client.pipelines.apply(thing, validate_only=dry_run)).outcome, None
    applied = await client.resources.apply(thing, validate_only=dry_run)
    return applied.outcome, applied.run


def _tell(
    results: batch.Results, manifest: Manifest, outcome: ApplyOutcome.ValueType, started: Run | None, dry_run: bool
) -> None:
    word = ApplyOutcome.Name(outcome).removeprefix("APPLY_OUTCOME_")
    value = {**_value(manifest), "outcome": word}
    extra = ""
    if started is not None and started.id and not dry_run:
        value["run"] = started.id
        extra = f", run {started.id} started"
    if dry_run:
        value["dryRun"] = True
        extra = " (dry run)"
    results.add(manifest.label, word.lower(), value, extra=extra)
