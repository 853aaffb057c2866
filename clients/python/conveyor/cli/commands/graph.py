"""`conveyor pipeline graph`."""

import sys
from collections.abc import Sequence

import click

from conveyor.cli.commands.files import read
from conveyor.cli.complete import complete_pipeline
from conveyor.cli.drawing.dot import draw_dot
from conveyor.cli.drawing.layers import plan
from conveyor.cli.drawing.mermaid import draw_mermaid
from conveyor.cli.drawing.text import draw_text
from conveyor.cli.failures import CliError
from conveyor.cli.kinds import PIPELINE
from conveyor.cli.options import DRAWINGS, command, settings
from conveyor.cli.refs import ref
from conveyor.cli.session import run
from conveyor.cli.terminal import columns, is_terminal
from conveyor.v1.pipeline_pb2 import Pipeline


@command("graph", formats=DRAWINGS)
@click.argument("name", metavar="[PIPELINE]", required=False, shell_complete=complete_pipeline)
@click.option("-f", "--filename", "names", metavar="FILE|DIR|-", multiple=True, help="Draw one that files describe.")
@click.option("--generation", type=click.IntRange(min=1), default=None, help="An earlier generation of it.")
def graph(name: str | None, names: tuple[str, ...], generation: int | None) -> None:
    """Draw the steps of a pipeline: as text, or for Graphviz (-o dot) or Mermaid (-o mermaid).

    Steps of one layer wait for nothing but layers above it. With -f no server is asked.
    """
    wanted = ref(PIPELINE, name).name if name else ""
    if names and generation is not None:
        raise click.UsageError("a file has no generations")
    if names:
        pipeline = _of_files(wanted, names)
    elif wanted:
        pipeline = run(settings(), lambda client: client.pipelines.get(wanted, generation or 0))
    else:
        raise click.UsageError("which pipeline? give its name or -f FILE")
    drawn = plan(pipeline)
    if settings().output == "dot":
        print(draw_dot(drawn))
    elif settings().output == "mermaid":
        print(draw_mermaid(drawn))
    else:
        print(draw_text(drawn, columns() if is_terminal(sys.stdout) else 0))


def _of_files(name: str, names: Sequence[str]) -> Pipeline:
    """The pipeline of that name, or the only one."""
    found = [each.object for each in read(names) if isinstance(each.object, Pipeline)]
    fitting = [each for each in found if name in {"", each.name}]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(each.name for each in found)
    if not found:
        raise CliError(f"there is no pipeline in {', '.join(names)}")
    raise CliError(f"which pipeline? there are {there}" if fitting else f"there is no pipeline {name}, but {there}")
