"""`conveyor apply`."""

from collections.abc import Sequence

import click

from conveyor.cli import batch
from conveyor.cli.commands.files import file_options, prune_options, read, selector
from conveyor.cli.dry_run import DryRun, Unchecked
from conveyor.cli.failures import Ended
from conveyor.cli.manifest import Manifest
from conveyor.cli.objects import Clients, Sent, remove_unchanged, send, starts_no_run
from conveyor.cli.options import command, settings
from conveyor.cli.prune import Leftover, check_labels, leftovers
from conveyor.cli.session import run
from conveyor.cli.terminal import note
from conveyor.sdk import Client
from conveyor.sdk.errors import FailedPrecondition
from conveyor.v1.apply_pb2 import ApplyOutcome


@command("apply")
@file_options
@click.option("--dry-run", is_flag=True, help="Check everything on the server, change nothing.")
@prune_options
def apply(names: tuple[str, ...], more: tuple[str, ...], dry_run: bool, prune: bool, labels: tuple[str, ...]) -> None:
    """Create or change what files describe.

    All files are checked before the first object is sent. Definitions come first, then pipelines, resources and
    schedules. An object that the server refuses is told; the others are applied all the same. --prune then deletes
    what earlier versions of the files held, unless something was refused.
    """
    wanted = selector(prune, labels)
    options = settings()
    manifests = read((*names, *more))
    if wanted is not None:
        check_labels(manifests, wanted)
    results = batch.Results(options)

    async def work(client: Client) -> None:
        async with Clients(options, client) as clients:
            try:
                try:
                    await _apply(clients, results, manifests, dry_run)
                except Ended:
                    if wanted is not None:
                        note("  nothing was pruned, because not everything could be applied")
                    raise
                if wanted is not None:
                    found = await leftovers(clients, manifests, wanted, options.namespace)
                    await _prune(clients, results, found, dry_run)
            finally:
                results.close()

    run(options, work)


async def _apply(clients: Clients, results: batch.Results, manifests: Sequence[Manifest], dry_run: bool) -> None:
    checks = DryRun(clients)

    async def one(manifest: Manifest) -> None:
        thing = manifest.object
        try:
            if dry_run:
                sent = await checks.send(manifest)
            else:
                sent = await send(await clients.of(thing.namespace), thing, validate_only=False)
        except Unchecked as unchecked:
            why = unchecked.refusal.message
            value = {**manifest.ref.value, "outcome": "UNCHECKED", "message": why, "dryRun": True}
            results.add(manifest.label, "not checked", value, extra=f": {unchecked}")
        else:
            _tell(results, manifest, sent, dry_run)

    await batch.each(manifests, str, one, place=Manifest.place)


async def _prune(clients: Clients, results: batch.Results, found: Sequence[Leftover], dry_run: bool) -> None:
    resources = {(each.object.namespace, each.ref.definition) for each in found}

    async def one(leftover: Leftover) -> None:
        thing = leftover.object
        value = {**leftover.ref.value, "outcome": "PRUNED"}
        extra = ""
        if dry_run:
            value["dryRun"] = True
            extra = " (dry run)"
        client = await clients.of(thing.namespace)
        try:
            # An object that somebody changed meanwhile may have other labels.
            await remove_unchanged(client, leftover.ref, thing.etag, validate_only=dry_run)
        except FailedPrecondition as error:
            if not dry_run or error.reason != "IN_USE" or (thing.namespace, thing.name) not in resources:
                raise
            # Without the dry run its resources would have gone before it.
        results.add(leftover.ref.label, "pruned", value, extra=extra)

    await batch.each(found, str, one)


def _tell(results: batch.Results, manifest: Manifest, sent: Sent, dry_run: bool) -> None:
    word = ApplyOutcome.Name(sent.outcome).removeprefix("APPLY_OUTCOME_")
    value = {**manifest.ref.value, "outcome": word}
    extra = ""
    if sent.run is not None and sent.run.id and not dry_run:
        value["run"] = sent.run.id
        extra = f", run {sent.run.id} started"
    elif starts_no_run(sent.object) and sent.outcome != ApplyOutcome.APPLY_OUTCOME_UNCHANGED:
        extra = ", no run: on_change is false"
    if dry_run:
        value["dryRun"] = True
        extra += " (dry run)"
    results.add(manifest.label, word.lower(), value, extra=extra)
