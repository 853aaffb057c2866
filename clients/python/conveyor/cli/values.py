"""Values of options."""

import click

from conveyor.cli.decode import free_form
from conveyor.cli.durations import parse_seconds
from conveyor.cli.json_reader import NotJson, read_json
from conveyor.cli.nodes import Fault


def seconds_option(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A duration in seconds."""
    if value is None:
        return None
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parse_param(text: str, name: str) -> object:
    """A JSON value, or text when it is not JSON."""
    try:
        nodes = list(read_json(text))
        return free_form(nodes[0], name) if len(nodes) == 1 else text
    except NotJson:
        return text
    except Fault as fault:
        raise click.UsageError(f"-p {fault}") from None
