"""Groups of commands, and the command class that gives every command the same options and output."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import click

from rtgen.cli.errors import describe
from rtgen.cli.output import Output, Result
from rtgen.errors import UsageError


class Lazy(NamedTuple):
    """Where a command lives, and its line in ``--help``, so that listing commands imports none of them."""

    module: str
    attribute: str
    help: str


def path_of(ctx: click.Context) -> str:
    """The command's words without the program's name, such as ``gpu ls``."""
    return " ".join(ctx.command_path.split()[1:])


class Command(click.Command):
    """A command whose callback takes an :class:`Output` first and returns a :class:`Result`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
            click.Option(["-q", "--quiet"], is_flag=True, help="Print only the bare result, and errors."),
            click.Option(["-v", "--verbose"], is_flag=True, help="Show tracebacks, and progress with --json."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _output(ctx).command = path_of(ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> int:
        output = _output(ctx)
        options = {name: ctx.params.pop(name) for name in ("as_json", "quiet", "verbose")}
        output.configure(json=options["as_json"], quiet=options["quiet"], verbose=options["verbose"])
        with output.guarded():
            assert self.callback is not None
            result = ctx.invoke(self.callback, output, **ctx.params)
        assert isinstance(result, Result)
        path = path_of(ctx)
        return output.result(result, None if result.error is None else describe(result.error, path))


class Group(click.Group):
    """A group that shows its help when called bare, imports ``lazy`` commands on use and suggests near names."""

    command_class = Command

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{"invoke_without_command": True, "no_args_is_help": False, **kwargs})
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return self.commands.get(cmd_name)
        command = getattr(import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def short_helps(self) -> dict[str, str]:
        """The commands' names and one-line helps."""
        eager = {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        return {name: entry.help for name, entry in self.lazy.items()} | eager

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.short_helps().items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _output(ctx).command = path_of(ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.short_helps() or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        near = get_close_matches(name, self.short_helps(), n=1, cutoff=0.5)
        suggestion = f"did you mean '{ctx.command_path} {near[0]}'?" if near else f"{ctx.command_path} --help"
        raise UsageError(f"no such command '{ctx.command_path} {name}'", hint=suggestion)

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            _output(ctx).text(ctx.get_help())
        return result

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=text) for name, text in self.short_helps().items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


Callback = TypeVar("Callback", bound=Callable[..., Result])


def command(name: str) -> Callable[[Callback], Command]:
    """Decorator: a :class:`Command` from a function ``(output, **parameters) -> Result``; its docstring is the help."""

    def wrap(callback: Callback) -> Command:
        made = click.command(name, cls=Command)(callback)
        assert isinstance(made, Command)
        return made

    return wrap


def _output(ctx: click.Context) -> Output:
    # Completion parses command lines without our entry point, hence without an Output.
    return ctx.ensure_object(Output)
