"""After a switch the ring holds what one block-causal pass over the remembered latents gives under the new prompt."""

from itertools import islice

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.runtime.denoise import Denoiser  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from scripts.postcard.tokens import build_tokenizer, encode  # noqa: E402
from tests.models.attention import DenseAttend, rotation  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
ROWS, COLUMNS = 2, 3
CHUNK = 3


class Remembering(DenseAttend):
    """Dense attention that keeps the keys and values of each layer."""

    def __init__(self, mask):
        super().__init__(mask)
        self.keys, self.values = [], []

    def __call__(self, layer, query, key, value):
        self.keys.append(key)
        self.values.append(value)
        return super().__call__(layer, query, key, value)


@torch.no_grad()
def block_causal_pass(modules, config, latents, positions, prompt):
    """Keys and values of all layers, each [1, heads, tokens, head_dim], from one pass at noise level 0."""
    length = config.text_encoder.max_tokens
    context = modules["text_encoder"](*encode(build_tokenizer(), [prompt], length, torch.device("cpu")))
    frames = torch.cat([torch.arange(position, position + CHUNK) for position in positions])
    chunk_of_token = torch.arange(len(positions)).repeat_interleave(CHUNK * ROWS * COLUMNS)
    attend = Remembering(chunk_of_token[:, None] >= chunk_of_token[None])
    turn = rotation(config.denoiser, frames, ROWS, COLUMNS)
    modules["denoiser"](
        torch.from_numpy(np.concatenate(latents, axis=2)), torch.zeros(1, len(frames)), context, turn, attend
    )
    return [*attend.keys, *attend.values]


@pytest.mark.parametrize(("name", "made"), [("tiny", 1), ("tiny", 5), ("tiny-wan", 2), ("tiny-wan", 6)])
def test_the_ring_after_a_switch(tiny_models, tiny_built, monkeypatch, name, made):
    model, rings = tiny_models[name], []
    generate = Denoiser.generate

    def watched(self, chunk, position):
        names = [state.input for state in self.session.component.states]
        rings.append({ring: self.session._buffers.current(ring).copy() for ring in names} | {"written": self.written})
        generate(self, chunk, position)

    monkeypatch.setattr(Denoiser, "generate", watched)
    with Pipeline.open(tiny_built(name).package, overlap=False) as pipeline:
        latents = []
        stream = pipeline.stream(PROMPT, seed=4, size=(ROWS * 16, COLUMNS * 16))
        for _ in islice(stream, made):
            latents.append(pipeline._denoiser.read("denoised"))
        pipeline.prompt = OTHER
        next(stream)
    cache = model.config.cache
    most, sink = cache.window // CHUNK - 1, cache.sink // CHUNK
    remembered = range(made) if made <= most else [*range(sink), *range(made - most + sink, made)]
    ring = rings[made]
    assert ring.pop("written") == len(remembered)
    kept = [latents[chunk] for chunk in remembered]
    places = [chunk * CHUNK for chunk in remembered]
    new, old = (block_causal_pass(model.modules(), model.config, kept, places, prompt) for prompt in (OTHER, PROMPT))
    assert len(ring) == len(new) == 2 * model.config.denoiser.layers
    for (name, tokens), expected, before in zip(ring.items(), new, old, strict=True):
        tokens = tokens[:, :, : expected.shape[2]]
        np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-4 * float(expected.abs().max()), err_msg=name)
        if not name.endswith("_cache_0"):  # the first layer's come before the prompt
            assert np.abs(tokens - before.numpy()).max() > 1e-2
