"""`conveyor run approve` and `conveyor run reject`."""

import getpass
import socket
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from conveyor.cli.complete import complete_gate, complete_run
from conveyor.cli.encode import encode_object, enum_name
from conveyor.cli.failures import CliError
from conveyor.cli.gates import missing_words, open_gates
from conveyor.cli.options import Settings, command, settings
from conveyor.cli.output import print_value
from conveyor.cli.refs import parse_run
from conveyor.cli.session import run
from conveyor.cli.terminal import one_line
from conveyor.sdk import Client
from conveyor.v1.pipeline_pb2 import Decision
from conveyor.v1.run_pb2 import StepRun


def _arguments(function: Callable[..., None]) -> Callable[..., Any]:
    @click.argument("run_id", metavar="RUN", shell_complete=complete_run)
    @click.argument("step", metavar="[STEP]", required=False, default="", shell_complete=complete_gate)
    @click.option("-m", "--comment", default="", help="Why, for people.")
    @click.option("--as", "by", metavar="NAME", default="", help="Who decides. Default: USER@HOST, as you are here.")
    @wraps(function)
    def wrapped(**arguments: str) -> None:
        function(**arguments)

    return wrapped


@command("approve")
@_arguments
def approve(run_id: str, step: str, comment: str, by: str) -> None:
    """Approve a gate that waits for a decision.

    STEP may be left out when only one gate of the run waits.
    """
    _decide(Decision.DECISION_APPROVED, run_id, step, comment, by)


@command("reject")
@_arguments
def reject(run_id: str, step: str, comment: str, by: str) -> None:
    """Reject a gate that waits for a decision: its step fails.

    STEP may be left out when only one gate of the run waits.
    """
    _decide(Decision.DECISION_REJECTED, run_id, step, comment, by)


def _decide(decision: Decision.ValueType, run_id: str, step: str, comment: str, by: str) -> None:
    options = settings()
    wanted, who = parse_run(run_id), by or _myself()

    async def work(client: Client) -> StepRun:
        name = step or await _only_gate(client, wanted)
        return await client.runs.decide(wanted, name, decision, who, comment)

    _print(options, run(options, work))


async def _only_gate(client: Client, run_id: str) -> str:
    """The gate that waits."""
    found = await client.runs.get(run_id)
    names = [each.step for each in open_gates(found)]
    if len(names) > 1:
        raise click.UsageError(f"{len(names)} gates of run {run_id} wait; name one of {', '.join(names)}")
    if not names:
        raise CliError(f"no gate of run {run_id} waits for a decision; the run is {enum_name(found, 'state')}")
    return names[0]


def _myself() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        raise click.UsageError("nobody knows who you are here; say it with --as NAME") from None


def _print(options: Settings, step: StepRun) -> None:
    if options.output == "name":
        print(f"run/{step.run}")
    elif options.output != "table":
        print_value(options, encode_object(step))
    elif not options.quiet:
        missing = missing_words(step.wait.approvals, step)
        said = missing or ": ".join(part for part in (enum_name(step, "state"), one_line(step.message)) if part)
        print(f"gate {step.step} of run/{step.run}: {said}")
