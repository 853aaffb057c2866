"""What `run start`, `retry`, `watch` and `wait` share: to follow a run to its end."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from conveyor.cli import batch
from conveyor.cli.deadline import deadline
from conveyor.cli.describe import summary
from conveyor.cli.encode import encode_object
from conveyor.cli.failures import Exit, Interrupted
from conveyor.cli.options import Settings
from conveyor.cli.output import print_value
from conveyor.cli.progress import progress
from conveyor.cli.session import run
from conveyor.cli.terminal import note
from conveyor.cli.values import seconds_option
from conveyor.sdk import Client
from conveyor.v1.run_pb2 import Run, RunState

_OUTCOMES = {
    RunState.RUN_STATE_SUCCEEDED: Exit.OK,
    RunState.RUN_STATE_FAILED: Exit.RUN_FAILED,
    RunState.RUN_STATE_CANCELLED: Exit.RUN_CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Following:
    """How a run is followed after its start."""

    wait: bool
    watch: bool
    timeout: float | None
    give_up_after: float


def give_up_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option --give-up-after."""
    return click.option(
        "--give-up-after",
        metavar="DURATION",
        default="5m",
        show_default=True,
        callback=seconds_option,
        help="How long to try to reach a server that went away.",
    )(function)


def follow_options(function: Callable[..., None]) -> Callable[..., Any]:
    """The options --wait, --watch, --timeout and --give-up-after of a command that starts a run."""

    @click.option("--wait", "-w", is_flag=True, help="Wait until the run has ended.")
    @click.option("--watch", is_flag=True, help="Show how it goes until then.")
    @click.option("--timeout", metavar="DURATION", callback=seconds_option, help="How long to wait, e.g. 10m.")
    @give_up_option
    @wraps(function)
    def wrapped(*, wait: bool, watch: bool, timeout: float | None, give_up_after: float, **rest: object) -> None:
        if timeout is not None and not (wait or watch):
            raise click.UsageError("--timeout goes with --wait or --watch")
        function(following=Following(wait, watch, timeout, give_up_after), **rest)

    return wrapped


def outcome_of(ended: Run) -> Exit:
    """The exit code for a run that has ended."""
    return _OUTCOMES.get(ended.state, Exit.ERROR)


async def first_look(client: Client, run_id: str) -> Run:
    """The run. NotFound when there is none; Unavailable at once when no server answers.

    A server that goes away later is waited for; one that was never there is more likely a wrong address.
    """
    return await client.runs.get(run_id)


async def watch_to_end(
    settings: Settings, client: Client, run_id: str, timeout: float | None, give_up_after: float
) -> Run:
    """Show a run until its end, and return it. WaitTimeout when it takes longer than the timeout."""
    last: Run | None = None
    with progress(settings) as show:
        async with (
            deadline(timeout, run_id),
            aclosing(client.runs.watch(run_id, give_up_after=give_up_after)) as updates,
        ):
            async for update in updates:
                show.update(update)
                last = update.run
    assert last is not None, "a watch ends with a terminal state"
    return last


def start_and_follow(settings: Settings, start: Callable[[Client], Awaitable[Run]], following: Following) -> None:
    """Start a run, tell its id, and follow it as far as asked."""
    started: list[str] = []

    async def work(client: Client) -> None:
        created = await start(client)
        started.append(created.id)
        if not (following.wait or following.watch):
            print_started(settings, created)
            return
        if settings.output == "table":
            print_started(settings, created)
        elif not settings.quiet:
            note(f"run {created.id} started")
        if following.watch:
            ended = await watch_to_end(settings, client, created.id, following.timeout, following.give_up_after)
        else:
            ended = await client.runs.wait(created.id, following.timeout, give_up_after=following.give_up_after)
            print_ended(settings, ended)
        batch.finish([outcome_of(ended)])

    try:
        run(settings, work)
    except Interrupted:
        told_to_go_on(settings, started)
        raise


def told_to_go_on(settings: Settings, run_ids: list[str]) -> None:
    """Say that Ctrl-C ended only the command."""
    if run_ids and not settings.quiet:
        what = f"run {run_ids[0]} goes on" if len(run_ids) == 1 else f"{len(run_ids)} runs go on"
        note(f"interrupted; {what}: `conveyor run watch {run_ids[0]}` follows, `conveyor run cancel` ends it")


def print_started(settings: Settings, created: Run) -> None:
    """Print a run that was just started."""
    if settings.output == "name":
        print(f"run/{created.id}", flush=True)
    elif settings.output != "table":
        print_value(settings, encode_object(created))
    else:
        print(created.id if settings.quiet else f"run {created.id} started", flush=True)


def print_ended(settings: Settings, ended: Run) -> None:
    """Print a run that has ended."""
    if settings.output == "name":
        print(f"run/{ended.id}", flush=True)
    elif settings.output != "table":
        print_value(settings, encode_object(ended))
    elif not settings.quiet:
        print(summary(ended), flush=True)
