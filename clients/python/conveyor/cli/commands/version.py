"""`conveyor version`."""

import click

from conveyor.cli.options import command, settings
from conveyor.version import VERSION


@command("version")
@click.option("--server", is_flag=True, help="Ask the server for its version too.")
def version(server: bool) -> None:
    """Print the version of this program."""
    options = settings()
    values: dict[str, object] = {"client": {"version": VERSION}}
    if server:
        # Loaded late: without --server nothing waits for gRPC.
        from conveyor.cli.encode import encode
        from conveyor.cli.session import run

        values["server"] = encode(run(options, lambda client: client.server_info()))
    if options.output in {"json", "yaml"}:
        from conveyor.cli.output import print_value

        print_value(options, values)
        return
    print(f"conveyor {VERSION}")
    answer = values.get("server")
    if isinstance(answer, dict):
        print(f"server {answer.get('version', 'unknown')} ({answer.get('store', 'unknown store')})")
