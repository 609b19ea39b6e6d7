"""The command line answers at once, and completes."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rtgen

ROOT = Path(rtgen.__file__).parents[1]
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "rich", "pydantic", "av", "tensorrt_rtx"}


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rtgen", *arguments]
    environment = {**os.environ, "PYTHONUTF8": "1", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert call("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.4


@pytest.mark.parametrize("line", ["--help", "--version", "run --help", "build --help", "engine --help", "gpu --help"])
def test_help_imports_nothing_heavy(line: str) -> None:
    script = f"import sys; from rtgen.cli.main import run; run({line.split()!r}); sys.exit(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "rtgen" in done.stdout
    assert not HEAVY & {name.partition(".")[0] for name in done.stderr.split()}


def test_a_bare_rtgen_shows_its_commands() -> None:
    done = call()
    assert done.returncode == 0 and "doctor" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_has_a_completion_script(shell: str) -> None:
    done = call("completion", shell)
    if done.returncode == 3:
        pytest.skip("this version of click does not know the shell")
    assert "_RTGEN_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rtgen bu", "build"),
        ("rtgen build --gpu rtx4080-", "rtx4080-laptop"),
        ("rtgen build --gpu au", "auto"),
        ("rtgen build --size 12", "128x128"),
        ("rtgen recipe show f", "fp16"),
        ("rtgen engine v", "verify"),
        ("rtgen run --see", "--seed"),
    ],
)
def test_names_complete(words: str, expected: str) -> None:
    position = str(len(words.split()) - 1)
    done = call(_RTGEN_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=position)
    assert f"plain,{expected}" in done.stdout.split()


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "rtgen", "gpu", "ls"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_called_that() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "rtgen", "gpu", "ls"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "error: the disk is full" in done.stderr
