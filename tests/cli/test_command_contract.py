"""What holds for every command, in every mode."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from rtgen.cli.group import Group
from rtgen.cli.main import cli
from rtgen.cli.output import Output

COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "build": (["--gpu", "cpu"], {"package", "key", "cached", "seconds", "memory_plan", "stages", "packages"}),
    "run": (
        ["--gpu", "cpu", "--prompt", "a red boat", "-o", "boat.mp4"],
        {
            "output",
            "frames",
            "seconds",
            "fps",
            "time_to_first_frame_s",
            "backend",
            "device",
            "package",
            "seed",
            "prompt",
        },
    ),
    "export": (["--gpu", "cpu"], {"folder", "files"}),
    "quantize": (["--gpu", "rtx4090", "--recipe", "int4-weights"], {"folder", "recipe", "layers", "recipes"}),
    "verify": (["postcard/cpu"], {"package", "passed", "rows"}),
    "estimate": (
        ["--gpu", "rtx4080-laptop"],
        {"fps", "denoise_fps", "memory_plan", "parts", "limited_by", "alternatives"},
    ),
    "bench kernels": (["--computed"], {"results", "machine", "launches"}),
    "bench pipeline": (["--gpu", "cpu"], {"results", "machine", "setting", "cases", "skipped", "files"}),
    "doctor": ([], {"usable", "rows"}),
    "gpu ls": ([], {"gpus"}),
    "gpu show": (["cpu"], {"name", "vram_gib"}),
    "model ls": ([], {"models"}),
    "model show": (["postcard"], {"name", "denoiser"}),
    "recipe ls": ([], {"recipes"}),
    "recipe show": (["fp32"], {"name", "precision"}),
    "engine ls": ([], {"store", "packages"}),
    "engine show": (["ab12"], {"package", "manifest"}),
    "engine verify": ([], {"packages"}),
    "engine rm": (["ab12"], {"removed", "freed"}),
    "cache key": (["--gpu", "cpu"], {"key", "gpu", "model"}),
    "cache dir": ([], {"dir"}),
    "cache size": ([], {"dir", "packages", "stages", "total", "free"}),
    "cache prune": (["--keep", "1"], {"removed", "freed", "remaining", "dry_run", "in_use"}),
    "completion": (["fish"], {"shell", "script"}),
}
SILENT_WHEN_QUIET = {"verify", "engine verify", "cache prune"}
"""Their bare result is what is wrong, or what went: nothing here."""


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> set[str]:
    if not isinstance(command, Group):
        return {" ".join(words)}
    ctx = click.Context(command, obj=Output())
    children = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
    return set().union(*(leaves(child, (*words, name)) for name, child in children.items() if child))


def test_every_command_is_held_to_the_contract() -> None:
    assert leaves(cli) == set(COMMANDS)


@pytest.fixture(params=COMMANDS)
def case(request: pytest.FixtureRequest, toolchain: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    arguments, keys = COMMANDS[request.param]
    return SimpleNamespace(name=request.param, line=[*request.param.split(), *arguments], keys=keys)


def test_people_get_plain_text(case: Any, rtgen: Callable[..., Any]) -> None:
    ran = rtgen(*case.line)
    assert ran.code == 0, ran.err
    assert ran.out.strip() or case.name == "cache prune"
    assert "\x1b" not in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_json_is_one_object_and_nothing_else(case: Any, rtgen: Callable[..., Any]) -> None:
    ran = rtgen(*case.line, "--json")
    assert ran.code == 0 and ran.err == ""
    body = ran.json
    assert (body["schema"], body["command"], body["ok"]) == ("rtgen/1", case.name, True)
    assert case.keys <= set(body["data"]) and "error" not in body


def test_quiet_prints_the_bare_result(case: Any, rtgen: Callable[..., Any]) -> None:
    ran = rtgen(*case.line, "--quiet")
    assert ran.code == 0 and ran.err == ""
    assert case.name == "doctor" or bool(ran.out.strip()) != (case.name in SILENT_WHEN_QUIET)


def test_an_unknown_option_is_a_usage_error_in_the_mode_asked_for(case: Any, rtgen: Callable[..., Any]) -> None:
    ran = rtgen(*case.line, "--colour")
    assert ran.code == 2 and ran.out == ""
    assert "error: no such option '--colour'" in ran.err and "\nhint: " in ran.err
    body = rtgen(*case.line, "--colour", "--json").json
    assert (body["command"], body["ok"]) == (case.name, False) and "data" not in body
    assert body["error"]["code"] == "usage" and set(body["error"]) == {"code", "message", "hint"}


def test_help_needs_nothing_else(case: Any, rtgen: Callable[..., Any]) -> None:
    ran = rtgen(*case.name.split(), "--help")
    assert ran.code == 0 and ran.out.startswith(f"Usage: rtgen {case.name}") and "--json" in ran.out


def test_the_list_of_commands_tells_the_same_as_the_commands() -> None:
    ctx = click.Context(cli, obj=Output())
    for name, entry in cli.lazy.items():
        command = cli.get_command(ctx, name)
        assert command is not None and command.name == name
        assert command.get_short_help_str(200) == entry.help.removesuffix(".") + "."
