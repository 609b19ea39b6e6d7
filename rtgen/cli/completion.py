"""``rtgen completion``."""

import click

from rtgen.cli.group import command
from rtgen.cli.output import Output, Result
from rtgen.errors import MissingDependencyError

SHELLS = ("bash", "zsh", "fish", "powershell")


@command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(output: Output, shell: str) -> Result:
    """Print the completion script of a shell.

    \b
    bash        eval "$(rtgen completion bash)"
    zsh         eval "$(rtgen completion zsh)"
    fish        rtgen completion fish | source
    powershell  rtgen completion powershell | Out-String | Invoke-Expression
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise MissingDependencyError(f"this version of click does not know {shell}", hint="pip install --upgrade click")
    script = kind(click.Group(), {}, "rtgen", "_RTGEN_COMPLETE").source().splitlines()
    return Result(data={"shell": shell, "script": "\n".join(script)}, lines=script, quiet=script)
