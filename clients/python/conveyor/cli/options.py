"""The options that every command takes, before or after its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

FORMATS = ("table", "json", "yaml", "name")
# What only some commands print.
DRAWINGS = ("text", "dot", "mermaid")

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What the common options say. None: not given."""

    namespace: str | None = None
    address: str | None = None
    output: str = "table"
    quiet: bool = False
    tls: dict[str, str] = field(default_factory=dict)
    """As the variables CONVEYOR_TLS_* that the options stand for."""


def settings() -> Settings:
    """The settings of the command that runs."""
    return click.get_current_context().ensure_object(Settings)


def _setting(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Settings), name, value)

    return store


def _tls(variable: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            context.ensure_object(Settings).tls[variable] = "1" if value is True else str(value)

    return store


def common_options(formats: Sequence[str] = (*FORMATS, *DRAWINGS)) -> list[click.Option]:
    """New objects of the common options. Those of groups take what any command prints, which then looks again."""
    path = click.Path(dir_okay=False)
    return [
        _option(
            "-n", "--namespace", metavar="NAME", callback=_setting("namespace"), help="Default: $CONVEYOR_NAMESPACE."
        ),
        _option("--address", metavar="HOST:PORT", callback=_setting("address"), help="Default: $CONVEYOR_ADDRESS."),
        _option("--tls", is_flag=True, callback=_tls("CONVEYOR_TLS"), help="TLS with the system's root certificates."),
        _option("--tls-ca", type=path, callback=_tls("CONVEYOR_TLS_CA"), help="Root certificates (PEM)."),
        _option("--tls-cert", type=path, callback=_tls("CONVEYOR_TLS_CERT"), help="Client certificate (PEM)."),
        _option("--tls-key", type=path, callback=_tls("CONVEYOR_TLS_KEY"), help="Its key (PEM)."),
        _option(
            "--tls-server-name",
            metavar="NAME",
            callback=_tls("CONVEYOR_TLS_SERVER_NAME"),
            help="Name in the server's certificate.",
        ),
        _option("-o", "--output", type=click.Choice(formats), callback=_setting("output"), help="Form of the output."),
        _option("-q", "--quiet", is_flag=True, callback=_setting("quiet"), help="No notes on stderr."),
    ]


def _option(*names: str, **attributes: Any) -> click.Option:
    return click.Option(names, expose_value=False, **attributes)


class CommonCommand(click.Command):
    """A command that takes the common options."""

    def __init__(self, *args: Any, formats: Sequence[str] = FORMATS, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._formats = formats
        self.params += common_options(formats)

    def invoke(self, context: click.Context) -> Any:
        output = context.ensure_object(Settings).output
        if output not in {*self._formats, "table"}:
            raise click.UsageError(f"-o {output} does not fit; there are {', '.join(self._formats)}", context)
        return super().invoke(context)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first."""
        common = {option.name for option in common_options()}
        own = [
            record
            for each in self.get_params(context)
            if each.name not in common
            and not isinstance(each, click.Argument)
            and (record := each.get_help_record(context))
        ]
        rest = [
            record
            for each in self.get_params(context)
            if each.name in common and (record := each.get_help_record(context))
        ]
        for title, records in (("Options", own), ("Common options", rest)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command that takes the common options."""
    return click.command(name, cls=CommonCommand, **attributes)


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """What options of the form key=value say."""
    found: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{option} takes key=value, not {each!r}")
        if key in found:
            raise click.UsageError(f"{option} {key} is given twice")
        found[key] = value
    return found
