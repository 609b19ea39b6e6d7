"""From any exception to a message, a hint, a code and an exit code: the one boundary.

Exit codes: 0 ok, 1 failed, 2 usage, 3 environment, 130 interrupted.
"""

import sys
from collections.abc import Callable
from typing import Any

import click

from rtgen.cli.output import Failure, ReaderGoneError
from rtgen.errors import BuildError, RtgenError

FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 1, 2, 3, 130

EXTRAS = dict.fromkeys(
    ("torch", "onnx", "onnxscript", "onnx_ir", "modelopt", "polygraphy", "requests", "huggingface_hub"), "compile"
) | {"tensorrt": "tensorrt"}
"""Top-level modules of the optional extras."""


def describe(error: BaseException, command: str = "") -> Failure:
    """What to tell the user about an exception; ``command`` (such as ``engine rm``) completes some hints."""
    for kind, describe_kind in _TABLE:
        if isinstance(error, kind):
            return describe_kind(error, command)
    pydantic = sys.modules.get("pydantic")  # not imported: no error of its
    if pydantic is not None and isinstance(error, pydantic.ValidationError):
        return _validation(error)
    detail = f"{type(error).__name__}: {error}".strip(": ")
    repeat = f"rtgen {command}".strip()
    return Failure("internal", f"internal error: {detail}", f"run '{repeat} -v …' again for the traceback", FAILED)


def _own(error: RtgenError, command: str) -> Failure:
    log = error.log if isinstance(error, BuildError) else ()
    return Failure(error.code, error.message, error.hint, error.exit_code, log)


def _interrupted(error: BaseException, command: str) -> Failure:
    return Failure("interrupted", "interrupted", "nothing is half-written; the same command starts again", INTERRUPTED)


def _reader_gone(error: ReaderGoneError, command: str) -> Failure:
    return Failure("reader_gone", "", None, FAILED)


def _click(error: click.ClickException, command: str) -> Failure:
    near = getattr(error, "possibilities", None)
    message = error.message if near else error.format_message()
    hint = f"did you mean {' or '.join(near)}?" if near else f"{f'rtgen {command}'.strip()} --help"
    if "--json" in str(getattr(error, "option_name", "")) and command.count(" ") == 0:
        hint = "--json goes after the command's name"
    return Failure("usage", _sentence(" ".join(message.split())), hint, USAGE)


def _missing_module(error: ModuleNotFoundError, command: str) -> Failure:
    module = (error.name or "").partition(".")[0]
    if module == "rtgen":
        return Failure("internal", f"internal error: {error}", "reinstall: pip install --force-reinstall rtgen", FAILED)
    if module in EXTRAS:
        hint = f'pip install "rtgen[{EXTRAS[module]}]"'
        return Failure("environment", f"this needs '{module}', which is not installed", hint, ENVIRONMENT)
    hint = "pip install --upgrade --force-reinstall rtgen (rtgen doctor shows what is missing)"
    return Failure("environment", f"'{error.name}' is not installed", hint, ENVIRONMENT)


def _import(error: ImportError, command: str) -> Failure:
    return Failure("environment", f"a library does not load: {_one_line(error)}", "rtgen doctor", ENVIRONMENT)


def _operating_system(error: OSError, command: str) -> Failure:
    from rtgen.store.failures import is_disk_full

    place = f": {error.filename}" if error.filename else ""
    if is_disk_full(error):
        hint = "rtgen cache prune frees space; --store DIR uses another disk"
        return Failure("disk_full", f"the disk is full{place}", hint, FAILED)
    if isinstance(error, PermissionError):
        hint = "choose a folder that you may write to, with --store or --output"
        return Failure("permission", f"permission denied{place}", hint, FAILED)
    return Failure("io", f"{error.strerror or _one_line(error)}{place}", None, FAILED)


def _memory(error: MemoryError, command: str) -> Failure:
    hint = "close other programs, or build on a machine with more memory: packages can be copied"
    return Failure("out_of_memory", "this machine ran out of memory (RAM)", hint, FAILED)


def _validation(error: Any) -> Failure:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = f"{error.title} is not valid: {f'{field}: ' if field else ''}{first['msg']}{more}"
    return Failure("invalid", message, "run again with -v to see which file", USAGE)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _sentence(message: str) -> str:
    """click's message in the form of ours: lower case, no full stop."""
    text = message.strip().removesuffix(".")
    return text[:1].lower() + text[1:]


_TABLE: tuple[tuple[type[BaseException], Callable[[Any, str], Failure]], ...] = (
    (RtgenError, _own),
    (click.Abort, _interrupted),
    (KeyboardInterrupt, _interrupted),
    (ReaderGoneError, _reader_gone),
    (click.ClickException, _click),
    (ModuleNotFoundError, _missing_module),
    (ImportError, _import),
    (OSError, _operating_system),
    (MemoryError, _memory),
)
"""First match wins, so a subclass comes before its base."""
