"""A stage that dies in mid-run: one clear error, no thread left, and the frames so far in a file that plays."""

import itertools
import threading

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import av

from rtgen.errors import RtgenError
from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.player import play
from rtgen.runtime.writers import StreamWriter

PROMPT = "a red kite drifts right over the sea"


@pytest.fixture(params=[False, True], ids=["in turn", "overlapped"])
def pipeline(tiny_built, request):
    with Pipeline.open(tiny_built("tiny").package, overlap=request.param) as opened:
        yield opened


def run(pipeline, path, frames=120):
    return play(pipeline, str(path), PROMPT, 0, frames, None, lambda *_: None)


def playable_frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rtgen")]


@pytest.mark.parametrize(("stage", "passes"), [("denoiser", 3), ("decoder", 1)])
def test_frames_made_before_a_stage_dies_stay_playable(pipeline, tmp_path, stage, passes):
    session = pipeline._denoiser if stage == "denoiser" else pipeline._decoder.session
    original, runs = session.run, itertools.count()

    def dying():
        if next(runs) == 4 * passes:  # in the fifth chunk
            raise RtgenError(f"the {stage} died")
        original()

    session.run = dying
    with pytest.raises(RtgenError, match=f"the {stage} died"):
        run(pipeline, tmp_path / "clip.mp4")
    assert playable_frames(tmp_path / "clip.mp4") == 48
    assert not threads() and [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    del session.run
    assert run(pipeline, tmp_path / "after.mp4", 24).frames == 24


def test_a_writer_that_dies_ends_the_run_and_keeps_what_it_had(pipeline, tmp_path, monkeypatch):
    original, chunks = StreamWriter.write, itertools.count()

    def dying(self, frames):
        if next(chunks) == 3:
            raise ValueError("the encoder died")
        original(self, frames)

    monkeypatch.setattr(StreamWriter, "write", dying)
    with pytest.raises(ValueError, match="the encoder died"):
        run(pipeline, tmp_path / "clip.mp4", 6000)
    assert playable_frames(tmp_path / "clip.mp4") == 36 and not threads()
