"""`conveyor run cancel` and `conveyor run retry`."""

import click

from conveyor.cli import batch
from conveyor.cli.complete import complete_run
from conveyor.cli.encode import encode_object, enum_name
from conveyor.cli.following import Following, follow_options, start_and_follow
from conveyor.cli.options import command, pairs, settings
from conveyor.cli.refs import parse_run
from conveyor.cli.session import run
from conveyor.cli.values import seconds_option
from conveyor.sdk import Client


@command("cancel")
@click.argument("run_ids", metavar="RUN…", nargs=-1, required=True, shell_complete=complete_run)
@click.option("-m", "--message", default="", help="Why, for people.")
@click.option("--force", is_flag=True, help="Do not wait for workers to confirm.")
@click.option("--grace", metavar="DURATION", callback=seconds_option, help='How long to wait for them, e.g. "30s".')
def cancel(run_ids: tuple[str, ...], message: str, force: bool, grace: float | None) -> None:
    """Cancel runs: what waits ends at once, what runs is told to stop."""
    options = settings()
    results = batch.Results(options)

    async def work(client: Client) -> None:
        async def one(run_id: str) -> None:
            changed = await client.runs.cancel(run_id, message, force, grace)
            results.add(f"run/{changed.id}", enum_name(changed, "state"), encode_object(changed))

        try:
            await batch.each([parse_run(each) for each in run_ids], lambda run_id: f"run/{run_id}", one)
        finally:
            results.close()

    run(options, work)


@command("retry")
@click.argument("run_id", metavar="RUN", shell_complete=complete_run)
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="A label of the new run.")
@follow_options
def retry(run_id: str, labels: tuple[str, ...], following: Following) -> None:
    """Run again what did not succeed, as a new run that takes over the rest."""
    old = parse_run(run_id)
    chosen = pairs(labels, "-l")
    start_and_follow(settings(), lambda client: client.runs.retry(old, chosen), following)
