"""All commands by name, and what becomes of the exceptions that they end with."""

import sys
from collections.abc import Callable, Sequence

import click

from conveyor.cli.failures import CliError, Ended, Exit, Interrupted, PipeClosed
from conveyor.cli.groups import Entry, Group
from conveyor.cli.terminal import harmless, is_terminal, note
from conveyor.sdk.errors import ApiError, ConfigurationError, ConnectionGivenUp, ConveyorError, Unavailable, WaitTimeout
from conveyor.version import VERSION

_RUN = Group(
    "run",
    {
        "start": Entry("start:start", "Start a run of a resource"),
        "list": Entry("get:list_runs", "List runs, newest first"),
        "get": Entry("get:get_run", "Show a run with its steps"),
        "watch": Entry("watch:watch", "Follow a run, or all runs, as they change"),
        "wait": Entry("watch:wait", "Wait until runs have ended"),
        "logs": Entry("logs:logs", "Print the log lines of a run"),
        "approve": Entry("decide:approve", "Approve a gate that waits for a decision"),
        "reject": Entry("decide:reject", "Reject a gate that waits for a decision"),
        "cancel": Entry("change:cancel", "Cancel runs"),
        "retry": Entry("change:retry", "Run again what did not succeed"),
        "delete": Entry("delete:delete_run", "Delete finished runs with their logs"),
    },
    summary="Start, follow and end runs.",
)
_DRIVER = Group(
    "driver",
    {
        "list": Entry("get:list_drivers", "List the drivers that made themselves known"),
        "get": Entry("get:get_driver", "Show a driver with its workers"),
        "delete": Entry("delete:delete_driver", "Forget drivers that are gone"),
        "verify": Entry("verify:verify", "Check what a driver does against the protocol"),
    },
    summary="See who works.",
)
_PIPELINE = Group(
    "pipeline",
    {
        "list": Entry("get:list_pipelines", "List pipelines"),
        "get": Entry("get:get_pipeline", "Show a pipeline with its steps"),
        "graph": Entry("graph:graph", "Draw the steps of a pipeline"),
        "delete": Entry("delete:delete_pipeline", "Delete pipelines"),
    },
    summary="See, draw and delete pipelines.",
)
_LOCK = Group(
    "lock",
    {
        "list": Entry("locks:list_locks", "List the locks that are held"),
        "get": Entry("locks:get_lock", "Show who holds a lock, and who waits for it"),
    },
    summary="See who holds locks, and who waits.",
)
_SCHEDULE = Group(
    "schedule",
    {
        "list": Entry("get:list_schedules", "List schedules"),
        "get": Entry("get:get_schedule", "Show a schedule with what came of it"),
        "pause": Entry("schedule:pause", "Have schedules start nothing"),
        "resume": Entry("schedule:resume", "Have schedules start runs again, from now on"),
        "trigger": Entry("schedule:trigger", "Start a run of a schedule at once"),
        "delete": Entry("delete:delete_schedule", "Delete schedules"),
    },
    summary="See, pause, trigger and delete schedules.",
)
_GROUPS = {"run": _RUN, "pipeline": _PIPELINE, "schedule": _SCHEDULE, "driver": _DRIVER, "lock": _LOCK}
_SUMMARY = """Conveyor, the control plane for CI/CD pipelines.

Exit codes: 0 ok, 1 error, 2 usage, 3 run failed, 5 run cancelled, 6 timeout, 7 no server reached, 130 Ctrl-C.
"""


def _version(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        print(f"conveyor {VERSION}")
        context.exit()


class _Root(Group):
    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return _GROUPS.get(name) or super().get_command(context, name)


ROOT = _Root(
    "conveyor",
    {
        "apply": Entry("apply:apply", "Create or change what files describe"),
        "diff": Entry("diff:diff", "Show what an apply would change"),
        "get": Entry("get:get", "Show one object"),
        "list": Entry("get:list_", "List the objects of a kind"),
        "delete": Entry("delete:delete", "Delete objects"),
        "run": Entry("", "Start, follow and end runs"),
        "pipeline": Entry("", "See, draw and delete pipelines"),
        "schedule": Entry("", "See, pause, trigger and delete schedules"),
        "driver": Entry("", "See who works"),
        "lock": Entry("", "See who holds locks, and who waits"),
        "schema": Entry("schema:schema", "Print the JSON Schema of manifests, for editors"),
        "version": Entry("version:version", "Print the version"),
        "completion": Entry("completion:completion", "Print a script that completes commands in a shell"),
    },
    summary=_SUMMARY,
    open_ended=True,
)
ROOT.params.append(
    click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
    )
)

# What to do about an error, where its text does not say it.
_HINTS = {
    "ETAG_MISMATCH": "it changed in between: get it again and repeat",
    "CONTENTION": "try again",
    "STORE_UNAVAILABLE": "nothing is known to have happened; try again when the store is back",
    "BROKER_UNAVAILABLE": "the server's broker is away; try again when it is back",
    "SHUTTING_DOWN": "try again in a moment",
    "OUTCOME_UNKNOWN": "it may have happened: look before you repeat",
    "RUN_UNDER_WAY": "`conveyor run cancel` ends it; `overlap: ALLOW` lets a schedule have several",
    "RUN_NOT_FINISHED": "`conveyor run cancel` ends it",
    "NO_OPEN_GATE": "`conveyor run get` shows which gates wait",
    "UNAUTHENTICATED": "check the client certificate: --tls-cert and --tls-key",
    "DEADLINE_EXCEEDED": "it may have happened: look before you repeat",
}


def dispatch(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        _check_text(arguments)
        result = ROOT.main(list(arguments), prog_name="conveyor", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.USAGE
    except click.UsageError as error:
        note(f"error: {error.format_message()}")
        if error.ctx is not None:
            note(f"  see {error.ctx.command_path} --help")
        return Exit.USAGE
    except click.ClickException as error:
        return _failed(error.format_message())
    except CliError as error:
        return _failed(error.message, error.details, error.code)
    except ConveyorError as error:
        return report(error)
    except OSError as error:
        return _failed(str(error))
    except Ended as error:
        return error.code
    except (Interrupted, click.Abort):
        if is_terminal(sys.stderr):
            # Behind the ^C that the terminal shows.
            print(file=sys.stderr)
        return Exit.INTERRUPTED
    except PipeClosed:
        return Exit.BROKEN_PIPE
    return result if isinstance(result, int) else Exit.OK


def _check_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= char <= "\udfff" for char in argument):
            raise click.UsageError(f"the argument {argument!r} is not text in the encoding of this system")


def report(error: ConveyorError, about: str = "", place: Callable[[str], str] | None = None) -> Exit:
    """Print what went wrong and return the exit code for it.

    `place` says where a field stands, for people to find it; the first at fault then stands for what it is about.
    """
    lines: list[str] = []
    cause = _cause(error)
    if isinstance(cause, ApiError):
        for field, description in cause.violations:
            line = f"{field}: {description}" if field else description
            # With a single violation the message often says all of it.
            if line not in cause.message:
                lines.append(f"{place(field)}: {line}" if place and field else line)
        if place and cause.violations and cause.violations[0].field:
            about = place(cause.violations[0].field)
        hint = _HINTS.get(cause.reason) or _HINTS.get(cause.code)
        lines += [hint] if hint else []
    return _failed(f"{about}: {error.message}" if about else error.message, lines, _code_of(error))


def _code_of(error: ConveyorError) -> Exit:
    # A server that says why it cannot answer, e.g. that its store is away, was reached.
    if isinstance(error, ConnectionGivenUp | Unavailable) and not getattr(_cause(error), "reason", ""):
        return Exit.GIVEN_UP
    if isinstance(error, WaitTimeout):
        return Exit.TIMED_OUT
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.ERROR


def _cause(error: ConveyorError) -> ConveyorError:
    """What a call was given up for, or the error itself."""
    cause = error.__cause__ if isinstance(error, ConnectionGivenUp) else None
    return cause if isinstance(cause, ConveyorError) else error


def _failed(message: str, details: Sequence[str] = (), code: Exit = Exit.ERROR) -> Exit:
    note(f"error: {message}")
    for detail in details:
        for line in harmless_lines(detail):
            note(f"  {line}")
    return code


def harmless_lines(text: str) -> list[str]:
    """The lines of a text."""
    return [harmless(line) for line in text.splitlines()] or [""]
