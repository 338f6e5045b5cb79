"""`tessera completion`: scripts for shells to complete commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes tessera's commands and options in a shell.

    \b
    tessera completion bash >>~/.bashrc
    tessera completion zsh >>~/.zshrc
    tessera completion fish >~/.config/fish/completions/tessera.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "tessera", "_TESSERA_COMPLETE")
    click.echo(ShellComplete.source(script))  # bash's own method would first run bash to get its version
