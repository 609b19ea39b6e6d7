"""A chunk is decoded in as many runs as the decoder's table asks for; only a stream's first frames are dropped."""

import numpy as np
import pytest

from rtgen.engine.manifest import ComponentEntry, TensorEntry
from rtgen.errors import PackageInvalidError
from rtgen.runtime.decode import Decoder

STRIDE, CHUNK = 4, 6
LATENTS = TensorEntry(name="latents", dtype="float32", shape=(1, 1, CHUNK, "rows", "columns"))
FIRST = TensorEntry(name="first", dtype="float32", shape=(1,))


def picking(*shape):
    return TensorEntry(name="latent_frames", dtype="int64", shape=shape)


class FakeDecoder:
    """Every pixel of a frame is 4 * (its latent's value) + its number among the latent's frames + 1000 * ``first``."""

    def __init__(self, *inputs):
        self.component = ComponentEntry(file="decoder.onnx", inputs=(LATENTS, *inputs), outputs=())
        self.runs, self.calls = 0, []

    def allocate(self, sizes):
        self.calls.append("allocate")

    def reset(self):
        self.calls.append("reset")

    def copy(self, name, source, source_name):
        assert (name, source_name) == ("latents", "denoised")
        self.latents, self.picked, self.first = source, np.arange(CHUNK), np.zeros(1, np.float32)

    def write(self, name, value):
        assert name in {tensor.name for tensor in self.component.inputs}
        setattr(self, {"latent_frames": "picked", "first": "first"}[name], value)

    def run(self):
        self.runs += 1

    def read(self, name):
        values = STRIDE * self.latents[self.picked].repeat(STRIDE) + np.tile(np.arange(STRIDE), len(self.picked))
        return np.broadcast_to((values + 1000 * self.first[0])[:, None, None, None], (len(values), 2, 2, 3))


@pytest.fixture
def decoder_of(make_manifest):
    def make(session, dropped=3):
        model = make_manifest().model.model_copy(update={"chunk": CHUNK, "dropped_frames": dropped})
        return Decoder(session, model)

    return make


@pytest.mark.parametrize(("inputs", "runs"), [((), 1), ((picking(3),), 2), ((picking(2),), 3), ((picking(1),), 6)])
@pytest.mark.parametrize("dropped", [0, 3])
def test_the_frames_do_not_show_how_many_runs_made_them(decoder_of, inputs, runs, dropped):
    session = FakeDecoder(*inputs)
    decoder = decoder_of(session, dropped)
    for _ in range(2):  # a second stream begins like the first
        decoder.start({"rows": 1, "columns": 1})
        session.runs = 0
        chunks = [decoder.decode(np.arange(start, start + CHUNK)) for start in (0, CHUNK)]
        assert [len(chunk) for chunk in chunks] == [STRIDE * CHUNK - dropped, STRIDE * CHUNK]
        frames = np.concatenate(chunks)
        assert np.array_equal(frames[:, 0, 0, 0], np.arange(dropped, 2 * CHUNK * STRIDE))
        assert session.runs == 2 * runs
    assert session.calls == ["allocate", "reset"] * 2


def test_only_the_run_that_opens_a_stream_is_marked(decoder_of):
    decoder = decoder_of(FakeDecoder(FIRST, picking(2)))
    decoder.start({})
    marks = [decoder.decode(np.zeros(CHUNK))[:, 0, 0, 0] // 1000 for _ in range(2)]
    assert np.array_equal(marks[0], [1] * (2 * STRIDE - 3) + [0] * 4 * STRIDE) and not marks[1].any()


@pytest.mark.parametrize("shape", [(4,), (0,), (7,), ("rows",), (1, 2), ()], ids=str)
def test_a_table_that_does_not_divide_the_chunk_is_refused(decoder_of, shape):
    with pytest.raises(PackageInvalidError, match="latent frames"):
        decoder_of(FakeDecoder(picking(*shape)))
