"""What must hold of a prediction, whatever is asked for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtgen.config.gpu import GpuConfig
from rtgen.config.load import can_run, list_gpus, list_models, list_recipes, load_gpu, load_recipe
from rtgen.config.recipe import KVCacheFormat
from rtgen.errors import ConfigError, SizeError, UnknownNameError, UsageError
from rtgen.estimate.advice import alternatives
from rtgen.estimate.efficiencies import load_efficiencies
from rtgen.estimate.numerics import Work
from rtgen.estimate.prediction import predict, used_efficiencies
from rtgen.estimate.roofline import Hardware, peak
from rtgen.estimate.setting import Setting, setting

EFFICIENCIES = load_efficiencies()
WAN = "wan2.1-1.3b-self-forcing"


def on_4080(**options: object) -> Setting:
    return setting("rtx4080-laptop", WAN, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gpu", list_gpus())
def test_every_gpu_has_an_estimate_of_every_recipe_and_model(gpu: str) -> None:
    recipes = [name for name in list_recipes() if can_run(load_gpu(gpu), load_recipe(name))]
    for model in list_models():
        for recipe in recipes:
            prediction = predict(setting(gpu, model, recipe=recipe), EFFICIENCIES)
            assert 0 < prediction.fps < prediction.denoise_fps < 1e5
            assert all(cost.seconds > 0 for cost in prediction.parts)


SETTINGS = st.builds(
    on_4080,
    recipe=st.sampled_from(["fp16", "int8", "fp8", "int4", "int4-awq"]),
    kv_bits=st.sampled_from([16, 8, 4]),
    window=st.integers(1, 12).map(lambda chunks: 3 * chunks),
    steps=st.integers(1, 8),
    size=st.tuples(st.integers(2, 40), st.integers(2, 64)).map(lambda size: (16 * size[0], 16 * size[1])),
)


@settings(max_examples=25, deadline=None)
@given(SETTINGS)
def test_more_work_is_never_faster(asked: Setting) -> None:
    base = predict(asked, EFFICIENCIES)
    longer = predict(asked.with_window(asked.model.cache.window + 3), EFFICIENCIES)
    more_steps = predict(replace(asked, steps=asked.steps + 1), EFFICIENCIES)
    larger = predict(replace(asked, size=(asked.size[0] + 16, asked.size[1])), EFFICIENCIES)
    for other in (longer, more_steps, larger):
        assert other.fps <= base.fps
        assert other.memory.total >= base.memory.total
    assert base.memory.kv_ring >= predict(replace(asked, kv_bits=4), EFFICIENCIES).memory.kv_ring


@settings(max_examples=25, deadline=None)
@given(SETTINGS)
def test_parts_add_up_and_the_range_holds_the_value(asked: Setting) -> None:
    base = predict(asked, EFFICIENCIES)
    assert sum(cost.seconds for cost in base.parts) == pytest.approx(base.chunk_seconds)
    assert base.frame_energy == pytest.approx(base.power * base.chunk_seconds / asked.frames)
    low, high = (predict(asked, EFFICIENCIES, case) for case in ("low", "high"))
    assert low.fps <= base.fps <= high.fps


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 1e15), st.floats(1, 1e13), st.sampled_from(list_gpus()))
def test_a_kernel_takes_as_long_as_its_slowest_limit(operations: float, moved: float, name: str) -> None:
    gpu = load_gpu(name)
    cost = Hardware(gpu, EFFICIENCIES).cost(Work("ffn", "linear", {"int8": operations}, moved))
    assert cost.seconds == max(cost.arithmetic, cost.bandwidth, cost.latency)
    assert cost.seconds == getattr(cost, cost.limit)
    fastest = 1.3 * peak(gpu, "int8")  # the one share above 1 is relative to FP32, on processors
    assert cost.arithmetic >= operations / fastest and cost.bandwidth > moved / (gpu.bandwidth_gb_s * 1e9)


def test_codes_are_computed_in_the_next_type_that_the_gpu_has() -> None:
    turing, blackwell, processor = map(load_gpu, ("t4", "rtx5090", "cpu"))
    assert peak(turing, "int4") == turing.throughput_tops.int4 * 1e12  # type: ignore[operator]
    assert peak(turing, "fp8") == peak(turing, "fp16") == peak(turing, "fp16_sums")
    assert peak(blackwell, "int4") == peak(blackwell, "int8")
    assert peak(processor, "int8") == peak(processor, "fp32")


def test_long_windows_are_bound_by_arithmetic_and_small_models_by_starting_kernels() -> None:
    """At window 21 self-attention is 70 % of the operations of the 480p model."""
    base = predict(setting("h200", WAN, recipe="fp16"), EFFICIENCIES)
    assert (base.limit.part, base.limit.limit) == ("self_attention", "arithmetic")
    assert next(cost.limit for cost in base.parts if cost.part == "elementwise") == "bandwidth"
    small = predict(setting("h200", "postcard", recipe="fp16"), EFFICIENCIES)
    assert next(cost.limit for cost in small.parts if cost.part == "projections") == "latency"


def test_a_recipe_changes_the_cost_of_what_it_quantizes_alone() -> None:
    parts = {
        recipe: {cost.part: cost.seconds for cost in predict(on_4080(recipe=recipe, kv_bits=16), EFFICIENCIES).parts}
        for recipe in ("fp16", "int8", "int4")
    }
    for part in ("self_attention", "cross_attention", "decoder", "elementwise"):
        assert parts["fp16"][part] == parts["int8"][part] == parts["int4"][part]
    assert parts["fp16"]["ffn"] > parts["int8"]["ffn"] > parts["int4"]["ffn"]


def test_the_best_advice_is_the_greatest_gain_and_true() -> None:
    base = predict(on_4080(recipe="fp16"), EFFICIENCIES)
    tried = alternatives(base, EFFICIENCIES)
    gains = [item.gain for item in tried]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0
    assert all(item.gain == pytest.approx(item.prediction.fps / base.fps - 1) for item in tried)
    options = {item.option for item in tried}
    assert {"--kv-bits 4", "--recipe int4", "--window 9", "--steps 3", "--size 320x576", "--decoder vae"} <= options
    # each option, typed, gives what was promised
    retyped = {
        "--kv-bits 4": on_4080(recipe="fp16", kv_bits=4),
        "--recipe int8": on_4080(recipe="int8"),
        "--window 9": on_4080(recipe="fp16", window=9),
        "--steps 2": on_4080(recipe="fp16", steps=2),
        "--decoder vae": on_4080(recipe="fp16", decoder="vae"),
    }
    promised = {item.option: item.prediction.fps for item in tried}
    for option, typed in retyped.items():
        assert predict(typed, EFFICIENCIES).fps == pytest.approx(promised[option])


def test_alternatives_never_leave_what_the_gpu_and_model_can_do() -> None:
    base = predict(setting("h100", "longlive-1.3b"), EFFICIENCIES)
    options = [item.option for item in alternatives(base, EFFICIENCIES)]
    assert not {"--recipe int4", "--recipe nvfp4", "--recipe int8-cpu"} & set(options)
    assert "--window 9" in options and "--window 6" not in options  # the sink needs 9
    processor = predict(setting("cpu", "postcard"), EFFICIENCIES)
    assert not any("--kv-bits" in item.option for item in alternatives(processor, EFFICIENCIES))


def test_bits_are_the_recipes_unless_others_are_asked_for() -> None:
    coded = load_recipe("int4").model_copy(update={"kv_cache": KVCacheFormat(bits=4)})
    plain = load_recipe("fp16")
    own = replace(on_4080(recipe="fp16"), recipe=coded, kv_bits=4)
    assert own.ring.bits == 4 and own.with_recipe(plain).kv_bits == 16
    assert own.with_recipe(plain).with_recipe(coded).kv_bits == 4
    assert replace(own, kv_bits=8).with_recipe(plain).kv_bits == 8
    for name in list_recipes():
        recipe = load_recipe(name)
        gpu = next(gpu for gpu in map(load_gpu, list_gpus()) if can_run(gpu, recipe))
        found = setting(gpu.name, WAN, recipe=name)
        assert found.ring == recipe.kv_cache
        assert found.kv_bits == (recipe.kv_cache.bits if recipe.precision == "float16" else 32)


def test_pruned_frames_cost_a_token_each() -> None:
    base = on_4080(recipe="fp16", kv_bits=4)
    ring = KVCacheFormat(bits=4, keep=0.5)
    half = replace(base, recipe=base.recipe.model_copy(update={"kv_cache": ring}))
    whole, pruned = (
        next(cost for cost in predict(found, EFFICIENCIES).parts if cost.part == "self_attention")
        for found in (base, half)
    )
    # of 21 frames of 1560 tokens 10 are seen whole, and the others as one token each
    assert pruned.operations / whole.operations == pytest.approx((10 * 1560 + 11) / (21 * 1560))
    assert pruned.seconds < 0.5 * whole.seconds


def test_int4_with_an_int4_ring_needs_less_than_8_gb_at_480p() -> None:
    base = predict(on_4080(recipe="int4", kv_bits=4, window=12), EFFICIENCIES)
    assert base.memory.total < 4e9
    assert predict(on_4080(recipe="fp16", window=12), EFFICIENCIES).fps < base.fps


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"recipe": "nvfp4"}, UsageError, "use --recipe"),
        ({"window": 7}, UsageError, "--window 6"),
        ({"window": -3}, UsageError, "--window 3"),
        ({"window": 3000}, UsageError, "--window 1023"),
        ({"steps": 0}, UsageError, "--steps 1 to 1000"),
        ({"size": (481, 832)}, SizeError, "--size 480x832 is near"),
        ({"decoder": "other"}, UsageError, "--decoder taehv or vae"),
    ],
)
def test_impossible_settings_are_refused_with_a_hint(
    options: dict[str, object], error: type[UsageError], hint: str
) -> None:
    with pytest.raises(error) as raised:
        on_4080(**options)
    assert hint in (raised.value.hint or "")


def test_unknown_names_are_refused() -> None:
    for gpu, model, recipe in (("rtx", WAN, None), ("t4", "wan", None), ("t4", WAN, "int5")):
        with pytest.raises(UnknownNameError):
            setting(gpu, model, recipe=recipe)
    with pytest.raises(UsageError, match="no estimate of a K/V ring of 4 bits on cpu"):
        setting("cpu", "postcard", kv_bits=4)


def test_the_entries_that_are_named_are_those_that_count() -> None:
    used = used_efficiencies(setting("h200", WAN, recipe="fp8"), EFFICIENCIES)
    statuses = {(entry.kind, entry.types[:1]): entry.status for entry in used}
    assert statuses[("linear", ("fp8",))] == statuses[("attention", ("fp16",))] == "measured"
    scaled = EFFICIENCIES.model_copy(
        update={"efficiency": tuple(entry for entry in EFFICIENCIES.efficiency if entry in used)}
    )
    asked = setting("h200", WAN, recipe="fp8")
    assert predict(asked, scaled).fps == predict(asked, EFFICIENCIES).fps
    none: GpuConfig = load_gpu("rtx4090")
    with pytest.raises(ConfigError, match="int4 ring attention"):
        scaled.find(none, "int4_ring_attention", "int8")
