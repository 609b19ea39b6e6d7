"""Ctrl-C while something real is going on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a console Ctrl-C cannot be sent to one process on Windows")


def hear_interrupts() -> None:
    """A shell without job control starts what goes to the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(arguments: list[str], after: str, environment: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line that gets SIGINT once ``after`` appears on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rtgen", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        preexec_fn=hear_interrupts,
    )
    assert process.stderr is not None
    seen = ""
    while after not in seen:
        line = process.stderr.readline()
        assert line, f"ended too early: {seen}"
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, seen + err


def unfinished(store: Path) -> list[Path]:
    return list((store / ".tmp").iterdir()) if (store / ".tmp").is_dir() else []


def test_an_interrupted_build_leaves_nothing_behind(tiny: Any, tmp_path: Path) -> None:
    line = ["build", "--gpu", "cpu", "--model", tiny.name, "--weights", str(tiny.weights), "--store", str(tmp_path)]
    code, out, err = interrupted(line, "export", {"RTGEN_CONFIGS": str(tiny.configs)})
    assert code == 130 and out == "" and "interrupted" in err and "Traceback" not in err
    assert not unfinished(tmp_path) and not list(tmp_path.glob("*/*/*/manifest.json"))


def test_an_interrupted_run_keeps_a_playable_video(tiny: Any, tiny_built: Any, tmp_path: Path) -> None:
    import av

    tiny_built(tiny.name)
    video = tmp_path / "video.mp4"
    line = ["run", "--gpu", "cpu", "--model", tiny.name, "--weights", str(tiny.weights), "--store", str(tiny.store)]
    line += ["--prompt", "a red kite", "--seconds", "3600", "-o", str(video)]
    code, _, err = interrupted(line, "frames", {"RTGEN_CONFIGS": str(tiny.configs)})
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
