"""`conveyor diff`."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from conveyor.cli import batch
from conveyor.cli.changes import Change, change
from conveyor.cli.commands.files import file_options, prune_options, read, selector
from conveyor.cli.dispatch import report
from conveyor.cli.dry_run import DryRun
from conveyor.cli.failures import CliError, Ended, Exit
from conveyor.cli.manifest import Manifest
from conveyor.cli.objects import Clients
from conveyor.cli.options import command, settings
from conveyor.cli.output import print_value
from conveyor.cli.prune import check_labels, leftovers
from conveyor.cli.session import run
from conveyor.cli.terminal import harmless, is_terminal, use_colour
from conveyor.sdk import Client
from conveyor.sdk.errors import ConveyorError

# As diff has it: 1 says that there are differences, and what is 1 elsewhere becomes 2.
_DIFFERENT = Exit.ERROR
_TROUBLE = Exit.USAGE

_COLOURS = (("--- ", "1"), ("+++ ", "1"), ("@@", "36"), ("-", "31"), ("+", "32"))


@command("diff")
@file_options
@prune_options
def diff(names: tuple[str, ...], more: tuple[str, ...], prune: bool, labels: tuple[str, ...]) -> None:
    """Show what `conveyor apply` would change, and change nothing.

    Exit codes: 0 nothing, 1 something, 2 error, 7 no server reached.
    """
    wanted = selector(prune, labels)
    found: list[Change] = []
    with _trouble():
        manifests = read((*names, *more))
        if wanted is not None:
            check_labels(manifests, wanted)
        try:
            run(settings(), lambda client: _compare(client, manifests, wanted, found))
        finally:
            _print(found)
    if found:
        raise Ended(_DIFFERENT)


async def _compare(
    client: Client, manifests: list[Manifest], labels: Mapping[str, str] | None, found: list[Change]
) -> None:
    """Put what differs into `found`."""
    options = settings()
    async with Clients(options, client) as clients:
        dry_run = DryRun(clients)

        async def one(manifest: Manifest) -> None:
            difference = await change(clients, dry_run, manifest)
            if difference.outcome != "UNCHANGED":
                found.append(difference)

        await batch.each(manifests, str, one, place=Manifest.place)
        if labels is not None:
            surplus = await leftovers(clients, manifests, labels, options.namespace)
            found += [Change(each.ref, "", each.object, None) for each in surplus]


@contextmanager
def _trouble() -> Iterator[None]:
    """Give errors an exit code that does not mean differences."""
    try:
        yield
    except CliError as error:
        raise CliError(error.message, error.details, _above(error.code)) from None
    except Ended as error:
        raise Ended(_above(error.code)) from None
    except ConveyorError as error:
        raise Ended(_above(report(error))) from None


def _above(code: Exit) -> Exit:
    return _TROUBLE if code is Exit.ERROR else code


def _print(changes: list[Change]) -> None:
    options = settings()
    if options.output in {"json", "yaml"}:
        print_value(
            options,
            [{**each.ref.value, "outcome": each.outcome, "diff": "\n".join(each.lines()) + "\n"} for each in changes],
        )
    elif options.output == "name":
        for each in changes:
            print(each.ref.label)
    elif not options.quiet:
        for each in changes:
            for line in each.lines():
                print(_shown(line))


def _shown(line: str) -> str:
    if is_terminal(sys.stdout):
        line = harmless(line)
    if use_colour(sys.stdout):
        colour = next((colour for mark, colour in _COLOURS if line.startswith(mark)), "")
        return f"\x1b[{colour}m{line}\x1b[0m" if colour else line
    return line
