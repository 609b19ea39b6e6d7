"""The rings of the study: each is near a ring of floats, in the order of what it spends."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from scripts.postcard import ring_study  # noqa: E402
from scripts.postcard.training import postcard_config  # noqa: E402


def ratios(chunks):
    """Signal-to-noise ratio of each variant's attention in dB, on random numbers with channels of unequal size."""
    config = postcard_config()
    parts = SimpleNamespace(config=config, device=torch.device("cpu"))
    stream = SimpleNamespace(parts=parts, rows=2, columns=4, branches=1, shape=(2,))
    others = {name: make(stream) for name, make in ring_study.VARIANTS.items()}
    compared = ring_study.Compared(stream, others)
    shape = (2, config.denoiser.heads, config.cache.chunk * 8, config.denoiser.head_dim)
    generator = torch.Generator().manual_seed(0)
    size = torch.ones(shape[-1]).index_fill(0, torch.tensor([3, 20]), 6.0)
    for chunk in range(chunks):
        compared.enter(chunk)
        query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
        compared(0, query / 4, key * size + size, value * size)
    return {name: 10 * torch.log10(torch.tensor(compared.signal / noise)) for name, noise in compared.noise.items()}


def test_every_ring_follows_the_stream_as_well_as_its_codes_allow():
    found = ratios(chunks=6)  # the ring of four chunks has turned over
    assert found["codes-8"] > 35 > 30 > found["codes-4"] > 12
    assert found["codes-4"] > found["codes-4-uncentred"] and found["codes-4"] > found["plain-4"] + 2
    assert found["codes-4-own-16"] >= found["codes-4-own-8"] - 0.2 > found["codes-4"]
    assert abs(found["quarot-4"] - found["codes-4-uncentred"]) < 2
    assert found["codes-4-keep-0.5"] < found["codes-8-keep-0.5"] + 0.5 < found["codes-8"]


def test_psnr_is_that_of_each_clip():
    clips = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    worse = clips.clone()
    worse[1] += 5
    found = ring_study.psnr(worse, clips)
    assert found[0] > 100 and found[1] == pytest.approx(34.15, abs=0.01)
