"""Long streams: memory and the time per chunk stay as they are."""

import json
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("psutil")

from rtgen.runtime.pipeline import Pipeline
from scripts import soak

PROMPT = "a red kite drifts right over the sea"


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
@pytest.mark.parametrize("seconds", [4, pytest.param(150, marks=pytest.mark.slow)])
def test_a_long_stream_keeps_its_memory_and_its_time_per_chunk(tiny_built, overlap, seconds):
    with Pipeline.open(tiny_built("tiny").package, overlap=overlap) as pipeline:
        found = soak.endure(pipeline, PROMPT, seconds, seconds / 4)
    assert found.chunks > 2 * seconds and found.frames == 12 * found.chunks
    assert found.growth_bytes < 8 << 20
    assert found.chunk_drift < 2  # of a machine that others use; growth with the stream's length would be far more


def test_what_a_leak_and_a_slowdown_look_like(monkeypatch):
    monkeypatch.setattr(soak, "resident_bytes", lambda: 50 << 20)
    found = soak._endurance(soak.array("d", [9.0, *[0.1] * 30, *[0.15] * 10]), 492, 5.0, 20 << 20)
    assert found.growth_bytes == 30 << 20
    assert found.chunk_drift == pytest.approx(1.5)
    assert (found.chunks, found.chunk_median_s, found.chunk_p95_s) == (41, 0.1, 0.15)


def test_the_script_prints_one_object_and_fails_over_the_limit(tiny_built, monkeypatch, capsys):
    line = ["soak", str(tiny_built("tiny").package), "--minutes", "0.02", "--restarts", "10", "--drift-limit", "100"]
    monkeypatch.setattr(sys, "argv", line)
    assert soak.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["stream"]["chunks"] > 1 and found["restarts"]["streams"] == 10
    monkeypatch.setattr(sys, "argv", [*line[:-1], "0"])
    assert soak.main() == 1


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
@pytest.mark.parametrize("streams", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_cancelled_streams_leave_neither_memory_nor_threads_nor_open_files(tiny_built, overlap, streams):
    with Pipeline.open(tiny_built("tiny").package, overlap=overlap) as pipeline:
        found = soak.restart(pipeline, PROMPT, streams)
    assert found.growth_bytes < 8 << 20 and not found.leaks


def test_a_thread_or_a_file_that_stays_open_fails_the_script(tiny_built, monkeypatch, capsys):
    line = ["soak", str(tiny_built("tiny").package), "--minutes", "0", "--restarts", "5"]
    monkeypatch.setattr(sys, "argv", line)
    assert soak.main() == 0 and json.loads(capsys.readouterr().out)["stream"] is None
    kept = []
    monkeypatch.setattr(soak, "_cancel", lambda *_: kept.append(open(sys.executable, "rb")))  # noqa: SIM115, PTH123
    assert soak.main() == 1
    for file in kept:
        file.close()
