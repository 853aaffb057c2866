"""`conveyor driver verify`."""

import asyncio
import signal
import sys
import tempfile
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

import click

from conveyor.cli.failures import CliError, Ended, Exit, Interrupted
from conveyor.cli.options import Settings, command, settings
from conveyor.cli.output import print_value
from conveyor.cli.session import run_alone
from conveyor.cli.terminal import one_line, use_colour
from conveyor.cli.values import seconds_option
from conveyor.sdk.config import namespace
from conveyor.verify import catalogue, kit
from conveyor.verify.process import CannotStart
from conveyor.verify.site import CannotServe

_COLOURS = {"ok": "green", "FAIL": "red", "skipped": None}


def _names(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> frozenset[str]:
    """The checks that an option names: several times, or with commas."""
    named = {name.strip() for each in given for name in each.split(",") if name.strip()}
    unknown = sorted(named - set(catalogue.NAMES))
    if unknown:
        raise click.BadParameter(f"there is no check {unknown[0]!r}; there are {', '.join(catalogue.NAMES)}")
    return frozenset(named)


@command("verify", context_settings={"allow_interspersed_args": False})
@click.argument("driver_command", metavar="-- COMMAND…", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--transport", type=click.Choice(catalogue.TRANSPORTS), default="grpc", help="How the driver takes part.")
@click.option("--driver", metavar="NAME", default="", help="The name that it must register; any when left out.")
@click.option("--slots", type=click.IntRange(1, 100), default=2, show_default=True, help="What CONVEYOR_SLOTS says.")
@click.option("--only", metavar="CHECK", multiple=True, callback=_names, help="Only these checks.")
@click.option("--skip", metavar="CHECK", multiple=True, callback=_names, help="Not these checks.")
@click.option(
    "--timeout",
    metavar="DURATION",
    default="15s",
    show_default=True,
    callback=seconds_option,
    help="How long each single thing may take that the driver has to do.",
)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="A file for what the driver prints.")
def verify(
    driver_command: tuple[str, ...],
    transport: str,
    driver: str,
    slots: int,
    only: frozenset[str],
    skip: frozenset[str],
    timeout: float,
    log: Path | None,
) -> None:
    """Start a driver, play the server for it, and check what it does.

    The driver follows the spec of the resources that it gets, as docs/conformance.md says: it writes the lines of
    `log`, works for `seconds`, and fails with `fail` or succeeds with `data`. The exit code is 1 when a check failed.
    """
    options = settings()
    if not (only or set(catalogue.NAMES)) - skip:
        raise click.UsageError("no check is left: --skip leaves out all of them")
    if log is not None:
        _try(log)
    with tempfile.TemporaryDirectory(prefix="conveyor-verify-") as folder:
        verification = kit.Settings(
            command=driver_command,
            folder=Path(folder),
            log=log,
            transport=transport,
            driver=driver,
            namespace=namespace(options.namespace),
            slots=slots,
            timeout=timeout,
            only=only,
            skip=skip,
        )
        found = run_alone(_judged(options, verification))
    if options.output in ("json", "yaml"):
        print_value(options, [asdict(each) for each in found])
    if any(each.verdict == "FAIL" for each in found):
        raise Ended(Exit.ERROR)


def _try(log: Path) -> None:
    """Better now than when the driver is to be started."""
    try:
        log.open("ab").close()
    except OSError as error:
        raise CliError(f"cannot write {log}: {error.strerror}", code=Exit.USAGE) from None


async def _judged(options: Settings, verification: kit.Settings) -> list[kit.Verdict]:
    found: list[kit.Verdict] = []
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with aclosing(kit.verify(verification)) as verdicts:
            async for each in verdicts:
                found.append(each)
                _show(options, each)
    except CannotStart as error:
        raise CliError(str(error), code=Exit.USAGE) from None
    except CannotServe as error:
        raise CliError(str(error)) from None
    except asyncio.CancelledError:
        # The driver and the broker are ended.
        raise Interrupted from None
    return found


def _show(options: Settings, verdict: kit.Verdict) -> None:
    """One line, as soon as it is known."""
    if options.output == "name":
        if verdict.verdict == "FAIL":
            print(verdict.check, flush=True)
    elif options.output == "table":
        word = f"{verdict.verdict:<8}"
        if use_colour(sys.stdout):
            word = click.style(word, fg=_COLOURS[verdict.verdict])
        print(f"{word}{verdict.check:<16} {one_line(verdict.said)}", flush=True)
