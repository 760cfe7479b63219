"""r1quant completion"""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "fish": FishComplete, "zsh": ZshComplete}
VARIABLE = "_R1QUANT_COMPLETE"  # what click looks for, made of the program's name


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete commands, options and their values.

    \b
    bash  eval "$(r1quant completion bash)"          in ~/.bashrc; needs bash 4.4
    zsh   eval "$(r1quant completion zsh)"           in ~/.zshrc
    fish  r1quant completion fish | source           in ~/.config/fish/config.fish
    """
    kind = SHELLS[shell]
    script = kind(context.find_root().command, {}, "r1quant", VARIABLE)
    click.echo(kind.source_template % script.source_vars())
