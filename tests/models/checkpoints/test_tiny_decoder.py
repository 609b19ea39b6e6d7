"""The tiny decoder: chunks do not show, frames are computed as published, and the published file fits."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from rtgen.models.taehv import TinyDecoder  # noqa: E402
from tests.models.checkpoints.published import converted, equal, shapes, source, state  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402

WIDTHS = (16, 8, 4, 4)


def tiny(seed=0):
    module = TinyDecoder(4, WIDTHS).eval().requires_grad_(False)
    random_weights(module, seed)
    return module


def decoded(module, latents, sizes):
    parts, past = [], None
    for chunk in latents.split(sizes, dim=2):
        pixels, past = module(chunk, past)
        parts.append(pixels)
    return torch.cat(parts, dim=2)


def frame_by_frame(weights, latents):
    """The published decoder as a walk of single frames through numbered layers, each with its own memory."""
    memory = {}

    def conv(name, x, padding=1):
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding)

    def walk(x, layer):
        if layer == 23:
            yield x.clamp(0, 1)
        elif layer in (2, 21):
            yield from walk(x.relu(), layer + 1)
        elif layer == 0:
            yield from walk(torch.tanh(x / 3) * 3, 1)
        elif layer in (6, 12, 18):
            yield from walk(x.repeat_interleave(2, -1).repeat_interleave(2, -2), layer + 1)
        elif layer in (7, 13, 19):
            grown = conv(f"decoder.{layer}.conv", x, padding=0)
            for frame in grown.split(x.shape[1], dim=1):
                yield from walk(frame, layer + 1)
        elif layer in (1, 8, 14, 20, 22):
            yield from walk(conv(f"decoder.{layer}", x), layer + 1)
        else:
            before = memory.get(layer, torch.zeros_like(x))
            memory[layer] = x
            y = conv(f"decoder.{layer}.conv.0", torch.cat([x, before], 1)).relu()
            y = conv(f"decoder.{layer}.conv.4", conv(f"decoder.{layer}.conv.2", y).relu())
            yield from walk((y + x).relu(), layer + 1)

    return torch.stack([frame for latent in latents.unbind(2) for frame in walk(latent, 0)], dim=2)


@pytest.mark.parametrize("sizes", [[5], [3, 2], [1] * 5])
def test_a_stream_is_decoded_frame_by_frame_as_published(sizes):
    module = tiny()
    latents = 2 * torch.randn(2, 4, 5, 3, 4)
    found = decoded(module, latents, sizes)
    assert found.shape == (2, 3, 20, 24, 32)
    torch.testing.assert_close(found, frame_by_frame(state(module), latents), atol=1e-5, rtol=0)
    assert 0 <= found.min() < 0.1 < 0.9 < found.max() <= 1


def test_states_are_one_frame_of_each_memory_block():
    _, states = tiny()(torch.randn(1, 4, 3, 2, 2))
    assert [tuple(value.shape) for value in states] == [
        *[(1, 16, 1, 2, 2)] * 3, *[(1, 8, 1, 4, 4)] * 3, *[(1, 4, 1, 8, 8)] * 3,
    ]  # fmt: skip


def test_the_published_size():
    decoder = TinyDecoder()
    assert sum(value.numel() for value in decoder.parameters()) == 9_844_611
    assert decoder.decoder[13].conv.weight.shape == (256, 128, 1, 1)


def test_the_published_file_fits(tmp_path):
    """It holds an encoder too, and may hold growths for more frames, of which the last are taken."""
    expected = state(tiny(seed=9))
    stored = {name: value.half() for name, value in expected.items()}
    earlier = torch.randn(16, 16, 1, 1).half()
    stored["decoder.7.conv.weight"] = torch.cat([earlier, stored["decoder.7.conv.weight"]])
    stored |= {"encoder.0.weight": torch.randn(64, 3, 3, 3).half(), "encoder.2.conv.weight": torch.randn(64, 128, 1, 1)}
    torch.save(stored, tmp_path / "taew2_1.pth")
    found = converted(source("tiny_decoder", tmp_path / "taew2_1.pth"), shapes(tiny()), tmp_path / "out")
    assert equal(found, {name: value.half().float() for name, value in expected.items()})
