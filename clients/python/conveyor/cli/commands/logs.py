"""`conveyor run logs`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import click

from conveyor.cli.complete import complete_run
from conveyor.cli.following import first_look, give_up_option
from conveyor.cli.loglines import LogPrinter
from conveyor.cli.nested_logs import Found, new_lines, stored_lines
from conveyor.cli.options import command, settings
from conveyor.cli.refs import parse_run
from conveyor.cli.session import run
from conveyor.sdk import Client
from conveyor.v1.log_pb2 import LogLine

# Without --follow nobody waits for a server to come back.
_PATIENCE = 5.0


@command("logs")
@click.argument("run_id", metavar="RUN", shell_complete=complete_run)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until the run has ended.")
@click.option("--step", metavar="STEP", default="", help="Only lines of this step.")
@click.option("--attempt", type=click.IntRange(min=1), help="Only lines of this attempt of the step.")
@click.option("--tail", type=click.IntRange(min=1), help="Only the last so many lines of what is there.")
@click.option("--children", is_flag=True, help="Also those of the runs that steps of the run started.")
@click.option("--timestamps", is_flag=True, help="The worker's time before each line.")
@click.option("--raw", is_flag=True, help="The exact text, without [step], also on a terminal.")
@give_up_option
def logs(
    run_id: str,
    follow: bool,
    step: str,
    attempt: int | None,
    tail: int | None,
    children: bool,
    timestamps: bool,
    raw: bool,
    give_up_after: float,
) -> None:
    """Print the log lines of a run, in the order in which they were stored.

    Each has its step before it, as [step], or [step#2] from the second attempt on, or [deploy/step] in a run that the
    step deploy started. On a terminal, escape sequences other than colours are left out; a pipe gets the exact text.
    """
    if children and (step or tail):
        raise click.UsageError("--children shows all lines of all steps; leave out --step and --tail")
    if attempt is not None and not step:
        raise click.UsageError("--attempt goes with --step")
    options = settings()
    wanted = parse_run(run_id)

    async def work(client: Client) -> None:
        await first_look(client, wanted)
        printer = LogPrinter(json=options.output in {"json", "yaml"}, timestamps=timestamps, raw=raw)
        loop = asyncio.get_running_loop()
        patience = give_up_after if follow else _PATIENCE
        if not children:
            lines = _of_run(
                client.logs.read(wanted, step, attempt or 0, follow, tail=tail or 0, give_up_after=patience)
            )
        elif follow:
            lines = new_lines(client, wanted, patience)
        else:
            lines = stored_lines(client, wanted, "", patience)
        async with aclosing(lines):
            async for way, line in lines:
                if printer.write(line, way):
                    # Runs when all lines that came together are written.
                    loop.call_soon(printer.flush)
        printer.close()

    run(options, work)


async def _of_run(lines: AsyncGenerator[LogLine, None]) -> AsyncGenerator[Found, None]:
    async with aclosing(lines):
        async for line in lines:
            yield "", line
