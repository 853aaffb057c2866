"""`conveyor completion`."""

import click
from click.shell_completion import get_completion_class

from conveyor.cli.options import command

_INSTRUCTION = "_CONVEYOR_COMPLETE"


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands and names in a shell.

    \b
    bash: eval "$(conveyor completion bash)"            in ~/.bashrc
    zsh:  eval "$(conveyor completion zsh)"             in ~/.zshrc
    fish: conveyor completion fish | source             in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(click.get_current_context().find_root().command, {}, "conveyor", _INSTRUCTION)
    # Not source(): that of bash runs bash, only to warn of versions of before 2016.
    print(complete.source_template % complete.source_vars())
