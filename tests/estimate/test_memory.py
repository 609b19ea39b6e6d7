"""The estimated terms against the memory plan that a build makes of the real tensor tables."""

import tomllib
from dataclasses import replace

import pytest

from rtgen.config.load import load_gpu, load_recipe
from rtgen.config.model import ModelConfig
from rtgen.config.recipe import KVCacheFormat
from rtgen.engine.manifest import ComponentEntry
from rtgen.engine.memory_plan import GIB
from rtgen.engine.memory_plan import estimate as build_plan
from rtgen.estimate.efficiencies import load_efficiencies
from rtgen.estimate.memory import text_parameters
from rtgen.estimate.prediction import predict
from rtgen.estimate.setting import Setting, setting
from tests.conftest import CONFIGS

pytest.importorskip("torch")

NAMES = ("tiny", "tiny-wan", "tiny-taehv", "tiny-host")


@pytest.mark.parametrize("ring", [KVCacheFormat(), KVCacheFormat(bits=4, keep=0.5)], ids=["floats", "codes"])
@pytest.mark.parametrize("name", NAMES)
def test_terms_are_those_of_the_tensor_tables(name: str, ring: KVCacheFormat) -> None:
    import torch

    from rtgen.export import decoder, denoiser, streaming, tiny_decoder
    from rtgen.models.registry import create

    model = ModelConfig.model_validate(tomllib.loads(CONFIGS[name]))
    gpu, size = load_gpu("rtx4090"), (64, 96)
    recipe = load_recipe("fp16").model_copy(update={"kv_cache": ring})
    mine = predict(Setting(gpu, model, recipe, size, ring.bits, 2), load_efficiencies()).memory

    torch.manual_seed(0)
    module = create("decoder", model)
    past = (tiny_decoder if model.decoder == "taehv" else decoder).past_frames(model, module)
    marks_first = model.decoder == "vae" and model.autoencoder.single_first_frame
    tables = {
        "denoiser": denoiser.tensor_table(model, "float16", ring),
        "decoder": streaming.tensor_table(model, past, "float16", marks_first=marks_first),
    }
    components = {
        name: ComponentEntry(file="x", inputs=tuple(inputs), outputs=tuple(outputs), states=tuple(states))
        for name, (inputs, outputs, states) in tables.items()
    }
    sizes = {"rows": size[0] // model.size_step[0], "columns": size[1] // model.size_step[1]}
    nothing = dict.fromkeys(components, 0)
    real = build_plan(components, sizes, weights=nothing, activations=nothing, share_activations=True, vram=GIB)
    assert (mine.kv_ring, mine.decoder_state, mine.context) == (real.kv_ring, real.decoder_state, real.context)
    assert mine.io == pytest.approx(real.io, rel=0.05)  # the text encoder's, positions and indices are left out


def test_the_ring_of_the_480p_model_is_as_large_as_planned() -> None:
    """5.62 and 3.21 GiB in 16 bits (docs/wan.md); in 4 bits at most 1.6."""

    def ring(bits: int, window: int) -> float:
        checked = setting("h200", "wan2.1-1.3b-self-forcing", kv_bits=bits, window=window)
        return predict(checked, load_efficiencies()).memory.kv_ring / GIB

    assert [round(ring(16, window), 2) for window in (21, 12)] == [5.62, 3.21]
    assert 1.4 < ring(4, 21) < 1.6 < ring(8, 21) < ring(16, 21)


def test_half_of_the_frames_pruned_leave_less_than_half_of_the_ring() -> None:
    """Pages, pool, scales, centres and tables: at least 5.5 times less than 16 bits."""
    whole = setting("h200", "wan2.1-1.3b-self-forcing", kv_bits=4, window=21)
    pruning = whole.recipe.model_copy(update={"kv_cache": KVCacheFormat(bits=4, keep=0.5)})
    rings = [predict(asked, load_efficiencies()).memory.kv_ring for asked in (whole, replace(whole, recipe=pruning))]
    tokens = 21 * 30 * 52
    assert rings[1] < 0.48 * rings[0] and 2 * 30 * 12 * 128 * 2 * tokens / rings[1] > 8 > 5.5


@pytest.mark.parametrize(
    ("recipe", "bits", "kept"), [("fp16", 16, 0.0), ("int4-awq", 4.25, 0.1), ("int8", 8.01, 0.1), ("fp8", 8, 0.1)]
)
def test_weights_take_the_bits_of_the_recipe(recipe: str, bits: float, kept: float) -> None:
    """Scales count, and as many matrices as the recipe may keep. What lies outside the blocks stays in 16 bits."""
    plan = predict(setting("rtx4090", "wan2.1-1.3b-self-forcing", recipe=recipe), load_efficiencies()).memory
    matrices = 30 * (8 * 1536**2 + 2 * 1536 * 8960)
    others = 1_418_996_800 + 9_844_611 - matrices
    expected = matrices * ((1 - kept) * bits + kept * 16) + others * 16
    assert plan.weights * 8 == pytest.approx(expected, rel=0.002)


def test_int4_weights_take_what_a_build_had() -> None:
    """0.75 GiB by the builder (docs/wan.md)."""
    plan = predict(setting("rtx4080-laptop", "wan2.1-1.3b-self-forcing", recipe="int4-weights"), load_efficiencies())
    assert plan.memory.weights / GIB == pytest.approx(0.75, rel=0.01)


def test_the_text_encoder_counts_only_where_it_lies_on_the_gpu() -> None:
    models = [ModelConfig.model_validate(tomllib.loads(CONFIGS[name])) for name in ("tiny", "tiny-host")]
    tiny, hosted = (
        predict(Setting(load_gpu("rtx4090"), model, load_recipe("fp16"), (64, 64), 16, 2), load_efficiencies()).memory
        for model in models
    )
    assert tiny.weights - hosted.weights == 2 * text_parameters(models[0].text_encoder)


def test_past_frames_in_codes_take_a_byte_each() -> None:
    model, gpu = ModelConfig.model_validate(tomllib.loads(CONFIGS["tiny"])), load_gpu("cpu")

    def state(recipe: str) -> int:
        made = Setting(gpu, model, load_recipe(recipe), (64, 96), 16, 2)
        return predict(made, load_efficiencies()).memory.decoder_state

    assert 4 * state("int8-cpu") == state("fp32") > 0
