"""completion: what makes a shell complete this command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

# Also in main.py: what a shell asks by.
VARIABLE = "_BALLPOINT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, and names of what is on the node.

    \b
    bash: eval "$(ballpoint completion bash)"     in ~/.bashrc
    zsh:  eval "$(ballpoint completion zsh)"      in ~/.zshrc, after compinit
    fish: ballpoint completion fish | source      in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(ctx.find_root().command, {}, "ballpoint", VARIABLE).source())
