"""Playing a stream into a sink: when later prompts take hold, and what the summary says."""

from types import SimpleNamespace

import av
import numpy as np
import pytest

from rtgen.errors import SizeError
from rtgen.runtime.adaptive import PassCount
from rtgen.runtime.player import Change, play
from rtgen.runtime.timing import StageTimes


class Pipeline:
    """Chunks of 12 frames whose red level is the number of the prompt that they were made under."""

    backend_name, device, overlaps = "onnxruntime", "CPU", False

    def __init__(self):
        model = SimpleNamespace(default_size=(16, 16), frames_per_second=16)
        self.manifest = SimpleNamespace(model=model, target=SimpleNamespace(compute_capability=None))
        self.passes, self.times = PassCount(levels=4), StageTimes()
        self.prompts, self.made, self.budgets = [], [], []
        self.warnings, self.size = (), (16, 16)

    @property
    def prompt(self):
        return self.prompts[-1]

    @prompt.setter
    def prompt(self, text):
        self.prompts.append(text)

    def check_size(self, size):
        if size[0] > 32:
            raise SizeError("too large")

    def stream(self, prompt, *, seed, frames, size, error_budget, adaptive):
        assert not adaptive
        self.prompt = prompt
        self.budgets.append(error_budget)
        return self._chunks(frames)

    def _chunks(self, frames):
        while frames > 0:
            self.warnings = (f"does not know {self.prompt}",)
            self.made.append(self.prompt)
            self.passes.chunks += 1
            self.passes.passes += 3
            self.times.add(0.25, 0.5, 12)
            yield np.zeros((min(frames, 12), *self.size, 3), np.uint8)
            frames -= 12


def played(tmp_path, frames, **options):
    pipeline = Pipeline()
    summary = play(pipeline, str(tmp_path / "frames") + "/", "first", 0, frames, None, lambda *_: None, **options)
    return pipeline, summary


def test_a_later_prompt_holds_from_the_first_chunk_after_its_frames(tmp_path):
    pipeline, summary = played(tmp_path, 60, then=[Change(36, "third"), Change(13, "second"), Change(600, "never")])
    assert pipeline.made == ["first", "first", "second", "third", "third"]
    assert summary.frames == 60 and len(list((tmp_path / "frames").iterdir())) == 60
    assert summary.warnings == tuple(f"does not know {name}" for name in ("first", "second", "third"))


def test_of_two_prompts_due_at_once_the_later_one_holds(tmp_path):
    pipeline, _ = played(tmp_path, 24, then=[Change(5, "second"), Change(12, "third")])
    assert pipeline.made == ["first", "third"]


def test_frames_change_their_size_from_the_first_chunk_after_the_time_on(tmp_path):
    pipeline, summary = played(tmp_path, 36, then=[Change(13, size=(32, 24)), Change(20, "second")])
    assert pipeline.made == ["first", "first", "second"] and summary.size == (16, 16)
    sizes = [av.open(str(path)).streams.video[0] for path in sorted((tmp_path / "frames").iterdir())]
    assert [(each.height, each.width) for each in sizes] == [(16, 16)] * 24 + [(32, 24)] * 12


def test_a_size_that_is_not_served_is_refused_before_the_first_frame(tmp_path):
    with pytest.raises(SizeError, match="too large"):
        played(tmp_path, 36, then=[Change(24, size=(64, 64))])
    assert not list(tmp_path.iterdir())


def test_the_summary_counts_passes_and_the_budget_reaches_the_stream(tmp_path):
    pipeline, summary = played(tmp_path, 24, error_budget=0.1)
    assert pipeline.budgets == [0.1]
    assert (summary.denoise_passes, summary.saved_passes, summary.shed_passes) == (3.0, 0.25, 2)


def test_the_summary_tells_the_speed_of_the_loop_from_that_of_the_run(tmp_path):
    _, summary = played(tmp_path, 60)
    assert summary.loop_fps == 48.0 and summary.steady_fps > 0 and summary.fps > 0
    assert summary.chunk_jitter_max >= summary.chunk_jitter_p95 > 0
    assert (summary.gpu_memory_bytes, summary.gpu_power_w, summary.gpu_utilisation) == (None, None, None)
    assert (summary.dropped_frames, summary.paused_s, summary.overlap) == (0, 0.0, False)
