"""Groups of commands that load a command only when it is named: `conveyor version` must not wait for gRPC."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple, cast

import click
from click.shell_completion import CompletionItem

from conveyor.cli.failures import CliError, PipeClosed
from conveyor.cli.options import common_options

_ENTRY_POINTS = "conveyor.cli.commands"
# What other distributions add.
_ELSEWHERE = {"server": ("Run a server", "conveyor")}


class Entry(NamedTuple):
    """Where a command is and what it does, so that help needs not load it."""

    where: str
    summary: str


class Group(click.Group):
    """A group of commands from a table, each in `module:attribute` below `conveyor.cli.commands`."""

    def __init__(self, name: str, table: Mapping[str, Entry], *, summary: str, open_ended: bool = False) -> None:
        super().__init__(name, params=list(common_options()), help=summary, no_args_is_help=True)
        self._table = table
        self._open_ended = open_ended

    def list_commands(self, context: click.Context) -> list[str]:
        return [*self._table, *(_ELSEWHERE if self._open_ended else ())]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = self._table.get(name)
        if entry is not None:
            module, _, attribute = entry.where.partition(":")
            return cast(click.Command, getattr(import_module(f"conveyor.cli.commands.{module}"), attribute))
        return _plugin(name) if self._open_ended else None

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(context, name) is None and self._open_ended and name in _ELSEWHERE:
            raise CliError(f"`conveyor {name}` belongs to another package: pip install {_ELSEWHERE[name][1]}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summary(name)) for name in self.list_commands(context)])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(context) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self._summary(name)) for name in names]
        return items + click.Command.shell_complete(self, context, incomplete)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            # Out of the reach of click, which would exit with 1.
            raise PipeClosed from None

    def _summary(self, name: str) -> str:
        return self._table[name].summary if name in self._table else _ELSEWHERE[name][0]


def _plugin(name: str) -> click.Command | None:
    """A command that another distribution adds."""
    from importlib.metadata import entry_points

    for point in entry_points(group=_ENTRY_POINTS, name=name):
        try:
            return cast(click.Command, point.load())
        except ImportError as error:
            raise CliError(f"`conveyor {name}` cannot be loaded: {error}; install its package again") from error
    return None
