"""`conveyor run start`."""

import click

from conveyor.cli.complete import complete_pipeline, complete_resource
from conveyor.cli.following import Following, follow_options, start_and_follow
from conveyor.cli.options import command, pairs, settings
from conveyor.cli.refs import parse_resource
from conveyor.cli.values import parameters


@command("start")
@click.argument("resource", metavar="DEFINITION/NAME", shell_complete=complete_resource)
@click.option("--pipeline", metavar="NAME", default="", shell_complete=complete_pipeline, help="Instead of its own.")
@click.option("-p", "--param", "texts", metavar="KEY=TEXT", multiple=True, help="A parameter that is text.")
@click.option("--param-json", "documents", metavar="KEY=JSON", multiple=True, help="A parameter of any type.")
@click.option("--params", "file", metavar="FILE", help="YAML or JSON with parameters; `-` is standard input.")
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, help="A label of the run.")
@click.option("--request-id", metavar="ID", default="", help="The same id starts one run only.")
@follow_options
def start(
    resource: str,
    pipeline: str,
    texts: tuple[str, ...],
    documents: tuple[str, ...],
    file: str | None,
    labels: tuple[str, ...],
    request_id: str,
    following: Following,
) -> None:
    """Start a run of a resource on its pipeline, or on another one.

    Parameters go over those of the resource, and single ones over those of the file.
    With --wait or --watch the exit code is the run's. Ctrl-C ends only this command: the run goes on.
    """
    definition, name = parse_resource(resource)
    values = parameters(texts, documents, file)
    chosen = pairs(labels, "-l")
    start_and_follow(
        settings(),
        lambda client: client.runs.start(definition, name, pipeline, values, chosen, request_id=request_id),
        following,
    )
