"""The only place that prints. stdout is data; stderr is progress, warnings and hints.

One :class:`Output` resolves three modes: for people, ``--json`` (exactly one object, also for errors) and ``--quiet``
(the bare result). Commands return a :class:`Result` and never print.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rtgen.progress import Progress

SCHEMA = "rtgen/1"
Mode = Literal["human", "json", "quiet"]


class ReaderGoneError(Exception):
    """Whoever read our stdout closed it, as ``head`` does. Nothing is left to say."""


@dataclass(frozen=True)
class Result:
    """What a command made, for each mode."""

    data: Mapping[str, Any]
    """The ``data`` of the JSON object."""
    lines: Sequence[str] = ()
    """stdout for people."""
    quiet: Sequence[str] = ()
    """stdout of ``--quiet``: bare values, one a line."""
    summary: Sequence[str] = ()
    """stderr for people."""
    error: Exception | None = None
    """Set when there is something to show although the command failed, such as the report of a broken machine."""


@dataclass(frozen=True)
class Failure:
    """An error as the user sees it. An empty ``message`` prints nothing."""

    code: str
    message: str
    hint: str | None
    exit_code: int
    log: tuple[str, ...] = ()
    """Last lines of a compiler, printed to stderr."""


class Output:
    """Where a command's results, notes and errors go."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        """``arguments``: the raw command line, which decides how errors in the command line itself are reported."""
        own = list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)
        self.command = ""
        self.data_on_stderr = False
        """Set when stdout carries a video: data goes to stderr then."""
        self.mode: Mode = "human"
        self.verbose = False
        self.configure(
            json="--json" in own,
            quiet="--quiet" in own or "-q" in own,
            verbose="--verbose" in own or "-v" in own,
        )

    def configure(self, *, json: bool, quiet: bool, verbose: bool) -> None:
        """Choose the mode; JSON wins over quiet, since it is as quiet."""
        self.mode = "json" if json else "quiet" if quiet else "human"
        self.verbose = verbose

    def result(self, result: Result, failure: Failure | None = None) -> int:
        """Print a command's result in the mode at hand, and its failure if it has one; return the exit code."""
        if failure is not None and self.mode == "json":
            return self.failure(failure, data=result.data)
        if self.mode == "json":
            self._json({"ok": True, "data": dict(result.data)})
            return 0
        if self.mode == "human":
            for line in result.summary:
                self._error_line(line)
        self._data(result.quiet if self.mode == "quiet" else result.lines)
        return 0 if failure is None else self.failure(failure)

    def failure(
        self, failure: Failure, error: BaseException | None = None, *, data: Mapping[str, Any] | None = None
    ) -> int:
        """Print an error and its hint; return its exit code. ``error`` gives the traceback of ``--verbose``."""
        if not failure.message or self.data_on_stderr:
            _discard_stdout()
        if not failure.message:
            return failure.exit_code
        if self.verbose and error is not None:
            import traceback

            self._error_line("".join(traceback.format_exception(error)).rstrip())
        for line in failure.log:
            self._error_line(f"  {line}")
        if self.mode == "json":
            described = {"code": failure.code, "message": failure.message, "hint": failure.hint}
            with contextlib.suppress(OSError, ReaderGoneError):
                self._json({"ok": False, **({} if data is None else {"data": dict(data)}), "error": described})
            return failure.exit_code
        self._error_line(f"{click.style('error:', fg='red', bold=True)} {failure.message}")
        if failure.hint:
            self._error_line(f"{click.style('hint:', fg='cyan', bold=True)} {failure.hint}")
        return failure.exit_code

    def note(self, message: str) -> None:
        """A line for people on stderr, while the command works."""
        if self.mode == "human" or (self.verbose and self.mode == "json"):
            self._error_line(message)

    def text(self, text: str) -> None:
        """Text that is the same in every mode: help and completion scripts."""
        _write(sys.stdout, text + "\n")

    def progress(self) -> "AbstractContextManager[Progress]":
        """A progress display that lasts as long as the context: bars, plain lines or nothing."""
        from rtgen.cli.progress import bars, lines, silence

        if self.mode == "quiet" or (self.mode == "json" and not self.verbose):
            return silence()
        return bars() if sys.stderr.isatty() and self.mode == "human" else lines(self.note)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep libraries quiet: what they print goes to stderr, unless stdout carries a video, and their Python
        warnings are for ``--verbose`` only."""
        import warnings

        with contextlib.ExitStack() as stack:
            if not self.data_on_stderr:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not self.verbose:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            yield

    def _json(self, body: Mapping[str, Any]) -> None:
        import json

        envelope = {"schema": SCHEMA, "command": self.command, **body}
        # ASCII only: a Windows pipe may not take anything else.
        self._data([json.dumps(envelope, default=str, allow_nan=False)])

    def _data(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        text = "\n".join(lines) + "\n"
        if self.data_on_stderr:
            self._error_line(text.rstrip("\n"))
        else:
            _write(sys.stdout, text)

    def _error_line(self, text: str) -> None:
        with contextlib.suppress(OSError, ReaderGoneError):  # nobody to tell
            _write(sys.stderr, text + "\n")


def wants_colour(stream: TextIO) -> bool:
    """Colour only for a terminal, and never against NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write(stream: TextIO, text: str) -> None:
    colour = wants_colour(stream)
    encoding = stream.encoding or "utf-8"
    errors = stream.errors or "strict"
    try:
        text.encode(encoding, errors)
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(text, file=stream, nl=False, color=colour)
    except OSError as error:
        # Windows reports a closed pipe as an invalid argument.
        if stream is sys.stdout and error.errno in (errno.EPIPE, errno.EINVAL):
            raise ReaderGoneError from error
        raise


def _discard_stdout() -> None:
    """Point stdout at nothing, or the interpreter complains when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = sys.stdout.fileno()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, descriptor)
        os.close(sink)
