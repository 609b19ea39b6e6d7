"""Exit codes and messages, from any exception."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from rtgen.cli.errors import describe
from rtgen.cli.output import Output
from rtgen.errors import BuildError, NoGpuError


class Sample(BaseModel):
    size: int


def validation_error() -> Exception:
    try:
        Sample.model_validate({"size": "large"})
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "code", "exit_code", "hint"),
    [
        (NoGpuError("no GPU", hint="use --gpu cpu"), "no_gpu", 3, "use --gpu cpu"),
        (KeyboardInterrupt(), "interrupted", 130, "half-written"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "disk_full", 1, "rtgen cache prune"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "permission", 1, "--store"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "io", 1, ""),
        (MemoryError(), "out_of_memory", 1, "memory"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "environment",
            3,
            'pip install "rtgen[compile]"',
        ),
        (ModuleNotFoundError("No module", name="onnx.helper"), "environment", 3, 'pip install "rtgen[compile]"'),
        (ModuleNotFoundError("No module", name="av"), "environment", 3, "pip install"),
        (ImportError("DLL load failed"), "environment", 3, "rtgen doctor"),
        (validation_error(), "invalid", 2, "-v"),
        (ZeroDivisionError("division by zero"), "internal", 1, "rtgen build -v"),
    ],
)
def test_every_kind_of_failure_has_a_code_and_a_way_on(
    error: BaseException, code: str, exit_code: int, hint: str
) -> None:
    failure = describe(error, "build")
    assert (failure.code, failure.exit_code) == (code, exit_code)
    assert hint in (failure.hint or "") and failure.message and "\n" not in failure.message


def fail_with(provide: Callable[..., ModuleType], error: BaseException) -> None:
    def build(*_: object) -> Any:
        raise error

    provide("rtgen.build.walk", build=build)


def test_an_interrupt_ends_with_130(toolchain: SimpleNamespace, provide: Any, rtgen: Any) -> None:
    fail_with(provide, KeyboardInterrupt())
    ran = rtgen("build", "--gpu", "cpu", "--json")
    assert ran.code == 130 and ran.json["error"]["code"] == "interrupted"


def test_the_compilers_last_lines_go_to_stderr(toolchain: SimpleNamespace, provide: Any, rtgen: Any) -> None:
    fail_with(provide, BuildError("the compiler failed", log=["[E] no kernel", "[E] giving up"]))
    ran = rtgen("build", "--gpu", "cpu")
    assert ran.code == 1 and ran.err.index("no kernel") < ran.err.index("error: the compiler failed")


def test_only_verbose_shows_tracebacks(toolchain: SimpleNamespace, provide: Any, rtgen: Any) -> None:
    fail_with(provide, ZeroDivisionError("oops"))
    assert "Traceback" not in rtgen("build", "--gpu", "cpu").err
    ran = rtgen("build", "--gpu", "cpu", "-v", "--json")
    assert "Traceback" in ran.err and ran.json["error"]["code"] == "internal"


def test_libraries_cannot_print_into_the_data(toolchain: SimpleNamespace, provide: Any, rtgen: Any) -> None:
    provide("rtgen.build.walk", package_key=lambda request: sys.stdout.write("chatter") and "0" * 64)
    assert rtgen("cache", "key", "--gpu", "cpu").out == "0" * 64 + "\n"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("biuld", "rtgen build"),
        ("gpu lss", "rtgen gpu ls"),
        ("gpu show rtx4080laptop", "rtx4080-laptop"),
        ("build --szie 1x1", "--size"),
        ("build --size 128", "128x128"),
        ("build --size 0x128", "128x128"),
        ("--json gpu ls", "after the command"),
        ("gpu --json ls", "after the command"),
        ("cache prune --max-size much", "20GiB"),
        ("engine show nosuch", "rtgen engine ls"),
    ],
)
def test_mistyped_lines_are_met_with_the_right_one(line: str, hint: str, store: Path, rtgen: Any) -> None:
    ran = rtgen(*line.split())
    assert ran.code in (2, 3) and hint in (ran.out or ran.err).partition("hint")[2]


def test_a_broken_machine_is_reported_with_its_error(toolchain: Any, provide: Any, rtgen: Any) -> None:
    from rtgen.cli import doctor_checks

    def probe(name: str) -> dict[str, Any]:
        raise doctor_checks.ProbeError(f"{name} crashed")

    provide("rtgen.cli.doctor_checks", probe=probe)
    body = rtgen("doctor", "--json").json
    assert not body["ok"] and body["error"]["code"] == "environment" and not body["data"]["usable"]
    ran = rtgen("doctor")
    assert ran.code == 3 and "onnxruntime crashed" in ran.out and "error: " in ran.err


def test_a_probe_that_fails_gives_its_reason() -> None:
    from rtgen.cli.doctor_checks import ProbeError, probe

    with pytest.raises(ProbeError, match="nosuch"):
        probe("nosuch")


def test_an_edited_package_fails_verification(store: Path, rtgen: Any) -> None:
    next(store.rglob("denoiser.data")).write_bytes(b"DENOISER.data")
    ran = rtgen("engine", "verify", "--json")
    body = ran.json
    assert ran.code == 1 and body["error"]["code"] == "package_invalid"
    assert "denoiser.data" in body["data"]["packages"][0]["problem"]


class Terminal:
    """A stderr that says it is a terminal."""

    encoding, errors = "utf-8", "strict"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("variable", "coloured"), [(None, True), ("1", False), ("", True)])
def test_colour_only_on_a_terminal_without_no_color(
    variable: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("NO_COLOR", variable)
    Output().failure(describe(NoGpuError("no GPU", hint="buy one")))
    assert ("\x1b" in terminal.text) == coloured and "hint:" in terminal.text
