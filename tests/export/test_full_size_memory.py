"""What the 480p model's tensor tables say about memory, which needs neither weights nor an engine."""

import pytest

torch = pytest.importorskip("torch")

from rtgen.config.kv_cache import most_live  # noqa: E402
from rtgen.config.load import load_model  # noqa: E402
from rtgen.config.recipe import KVCacheFormat  # noqa: E402
from rtgen.engine.manifest import ComponentEntry  # noqa: E402
from rtgen.engine.memory_plan import GIB, estimate  # noqa: E402
from rtgen.export import denoiser, streaming, tiny_decoder  # noqa: E402
from rtgen.models.taehv import TinyDecoder  # noqa: E402

WEIGHTS = {"denoiser": 781_934_516, "decoder": 19_689_730}
ACTIVATIONS = {"denoiser": 0, "decoder": 458_670_080}
"""Bytes with INT4 weights, as the builder reports them (docs/wan.md); the denoiser's activations are the lesser."""


def component(inputs, outputs, states):
    return ComponentEntry(file="network.engine", inputs=inputs, outputs=outputs, states=states)


def plan(config, ring=None):
    past = tiny_decoder.past_frames(config, TinyDecoder())
    tables = {
        "denoiser": component(*denoiser.tensor_table(config, "float16", ring)),
        "decoder": component(*streaming.tensor_table(config, past, "float16", marks_first=False)),
    }
    sizes = {"rows": 480 // 16, "columns": 832 // 16}
    return estimate(tables, sizes, weights=WEIGHTS, activations=ACTIVATIONS, share_activations=True, vram=12 * GIB)


def test_the_plan_of_480p_with_int4_weights_is_under_8_gb():
    config = load_model("wan2.1-1.3b-self-forcing")
    found = plan(config)
    assert found.total < 8e9  # and so under 8 GiB
    assert found.kv_ring == 2 * 30 * 12 * (21 * 30 * 52) * 128 * 2
    assert found.decoder_state == 2 * 3 * (256 + 4 * 128 + 16 * 64) * 60 * 104 * 2
    assert found.io < 20 << 20


def test_four_bits_of_21_frames_are_at_most_1_6_gib():
    config = load_model("wan2.1-1.3b-self-forcing")
    found = plan(config, KVCacheFormat(bits=4)).kv_ring
    assert found == 2 * 30 * 12 * (21 * 30 * 52 * (64 + 2) + 128 * 2) + 30 * 8
    assert found < 1.6 * GIB
    assert plan(config).kv_ring / found > 3.87


def test_half_of_21_frames_pruned_take_at_least_5_5_times_less_than_floats():
    """Codes, scales, pool, centres and the tables of pages: all that is resident."""
    config = load_model("wan2.1-1.3b-self-forcing")
    found = plan(config, KVCacheFormat(bits=4, keep=0.5)).kv_ring
    frames = most_live(21, config.cache.sink, 3, 0.5, 0.25)
    assert found == 2 * 30 * 12 * ((frames * 30 * 52 + 21) * (64 + 2) + 128 * 2) + 30 * 21 * 8
    assert 5.5 < 8 < plan(config).kv_ring / found and found < 0.7 * GIB


def test_whole_chunks_take_three_times_the_frames():
    config = load_model("wan2.1-1.3b-self-forcing")
    whole = plan(config.model_copy(update={"decode_frames": None}))
    assert whole.io - plan(config).io == 8 * 480 * 832 * 3 - 8  # less the number of the latent frame
