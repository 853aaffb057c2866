"""Values of options."""

from collections.abc import Sequence

import click

from conveyor.cli.decode import free_form
from conveyor.cli.durations import parse_seconds
from conveyor.cli.failures import CliError
from conveyor.cli.json_reader import NotJson, read_json
from conveyor.cli.nodes import Fault
from conveyor.cli.options import pairs
from conveyor.cli.sources import read_sources


def seconds_option(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A duration in seconds."""
    if value is None:
        return None
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parameters(texts: Sequence[str], documents: Sequence[str], file: str | None) -> dict[str, object] | None:
    """What `-p`, `--param-json` and `--params` give; the first two go over the file."""
    words, others = pairs(texts, "-p"), pairs(documents, "--param-json")
    if both := words.keys() & others.keys():
        raise click.UsageError(f"the parameter {min(both)} is given by -p and by --param-json")
    found = _from_file(file) if file is not None else {}
    found.update(words)
    found.update((name, _from_json(text, name)) for name, text in others.items())
    return found or None


def _from_json(text: str, name: str) -> object:
    try:
        nodes = list(read_json(text))
        if len(nodes) != 1:
            raise NotJson(0, "", "it is no single value")
        return free_form(nodes[0], name)
    except NotJson:
        raise click.UsageError(f"--param-json {name} is not JSON; text is given by -p {name}=…") from None
    except Fault as fault:
        raise click.UsageError(f"--param-json {fault}") from None


def _from_file(name: str) -> dict[str, object]:
    """The parameters in a file of YAML or JSON. Raises CliError."""
    (source,) = read_sources([name])
    try:
        nodes = list(source.documents())
        values = free_form(nodes[0], "") if len(nodes) == 1 else None
    except Fault as fault:
        raise CliError(f"{source.name}:{fault.line}: {fault}") from None
    if not isinstance(values, dict):
        raise CliError(f"{source.name}: is no single map of parameters and their values")
    return values
