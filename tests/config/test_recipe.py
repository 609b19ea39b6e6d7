"""What a recipe may say, and what the shipped ones say."""

import pytest
from pydantic import ValidationError

from rtgen.config.kv_cache import kv_cache_of, most_live, pool_rows, ring_frames, with_kv_bits
from rtgen.config.load import can_run, list_gpus, list_recipes, load_gpu, load_model, load_recipe
from rtgen.config.recipe import KVCacheFormat, Quantization, RecipeConfig

AWQ = {"algorithm": "awq", "weights": {"format": "int4", "block": 64}}
INT8 = {"format": "int8"}
FP4 = {"format": "fp4", "block": 16}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"algorithm": "gptq"}, "algorithm"),
        ({"weights": {"format": "int4"}}, "block of int4 weights is 32 or 64 or 128"),
        ({"weights": {"format": "int4", "block": 48}}, "block of int4 weights"),
        ({"weights": {"format": "fp8", "block": 16}}, "block of fp8 weights is none"),
        ({"activations": {"format": "int8", "group": 64}}, "group of int8 activations is none"),
        ({"activations": {"format": "int4", "group": 16}}, "group of int4 activations is 64"),
        ({"weights": FP4, "activations": {"format": "int4", "group": 64}}, "need int4 weights in blocks of 64"),
        ({"activations": {"format": "fp4", "group": 16, "rotation": True}}, "rotation is for int4"),
        ({"algorithm": "none", "sensitivity": {"at_most": 0.1}}, "'none' is for"),
        ({"algorithm": "none", "activations": INT8}, "'none' is for"),
        ({"algorithm": "svdquant"}, "go together"),
        ({"low_rank": {"rank": 32}}, "go together"),
        ({"algorithm": "smoothquant"}, "needs int8 activations"),
        ({"weights": INT8}, "needs weights in blocks"),
        ({"sensitivity": {"at_most": 1.5}}, "at_most"),
        ({"bits": 4}, "bits"),
    ],
)
def test_settings_that_nothing_implements_are_refused(change: dict[str, object], reason: str) -> None:
    Quantization.model_validate(AWQ)
    with pytest.raises(ValidationError, match=reason):
        Quantization.model_validate(AWQ | change)


def test_rounding_to_nearest_is_for_weights_alone_or_int8_throughout() -> None:
    for fields in ({"weights": AWQ["weights"]}, {"weights": INT8, "activations": INT8}):
        settings = Quantization.model_validate({"algorithm": "none", **fields})
        assert not settings.is_calibrated and not settings.needs_modelopt


@pytest.mark.parametrize(
    ("compilers", "capabilities"), [(["onnxruntime"], ["8.9"]), (["tensorrt_rtx"], []), (["tensorrt"], ["sm_89"])]
)
def test_compute_capabilities_belong_to_recipes_for_gpus(compilers: list[str], capabilities: list[str]) -> None:
    with pytest.raises(ValidationError, match="compute_capabilities"):
        RecipeConfig.model_validate(
            {
                "name": "x",
                "title": "x",
                "precision": "float16",
                "compilers": compilers,
                "compute_capabilities": capabilities,
            }
        )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bits": 5}, "bits"),
        ({"keep": 0.5}, "8 or 4 bits"),
        ({"bits": 4, "keep": 0}, "keep"),
        ({"recent": 2}, "recent"),
    ],
)
def test_rings_that_no_kernel_keeps_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        KVCacheFormat.model_validate(fields)


def test_the_ring_is_the_recipes_unless_the_user_or_the_model_says_otherwise() -> None:
    model = load_model("longlive-1.3b")
    keeping = model.model_copy(update={"cache": model.cache.model_copy(update={"keep": 0.5})})
    for recipe in map(load_recipe, list_recipes()):
        assert kv_cache_of(model, recipe) == recipe.kv_cache and with_kv_bits(recipe, None) == recipe
        coded = with_kv_bits(recipe, 8)
        assert coded.kv_cache.bits == 8 and kv_cache_of(keeping, coded).keep == 0.5
        assert pool_rows(keeping, kv_cache_of(keeping, coded)) == model.cache.window
        assert pool_rows(model, coded.kv_cache) == 0
        assert (
            ring_frames(model, coded.kv_cache) == model.cache.window > ring_frames(keeping, kv_cache_of(keeping, coded))
        )
        plain = with_kv_bits(coded, 16)
        assert not plain.kv_cache.is_coded and kv_cache_of(keeping, plain).keep == 1.0


def test_a_pruned_ring_has_memory_for_its_share_and_for_what_is_never_pruned() -> None:
    assert most_live(21, 0, 3, keep=0.5, recent=0.25) == 10  # 10.5, to even
    assert most_live(21, 6, 3, keep=0.5, recent=0.25) == 12  # the sink and ceil(5.25)
    assert most_live(21, 0, 3, keep=0.1, recent=0.0) == 3  # the chunk
    assert most_live(20, 0, 1, keep=0.1, recent=0.1) == 2  # 0.1 of 20 is a little more in float32
    assert most_live(6, 3, 3, keep=0.5, recent=0.25) == most_live(6, 0, 2, keep=1.0, recent=0.25) == 6


def test_every_shipped_recipe_runs_on_a_shipped_gpu_and_every_capability_it_names_is_one() -> None:
    gpus = [load_gpu(name) for name in list_gpus()]
    known = {gpu.compute_capability for gpu in gpus}
    for recipe in map(load_recipe, list_recipes()):
        assert any(can_run(gpu, recipe) for gpu in gpus), recipe.name
        assert known >= set(recipe.compute_capabilities), recipe.name


def test_only_calibrated_recipes_need_modelopt() -> None:
    needing = {
        name
        for name in list_recipes()
        if (quantization := load_recipe(name).quantization) is not None and quantization.needs_modelopt
    }
    assert needing == {"int8", "fp8", "int4-awq", "nvfp4"}


def test_a_decoder_on_codes_is_for_recipes_of_the_processor() -> None:
    fields = load_recipe("int8-cpu").model_dump()
    assert RecipeConfig.model_validate(fields).decoder is not None
    gpu = load_recipe("int8").model_dump() | {"decoder": {"format": "int8"}}
    for change in (fields | {"quantization": None}, fields | {"compilers": ("onnxruntime", "torch")}, gpu):
        with pytest.raises(ValidationError, match="section decoder is for recipes of onnxruntime alone"):
            RecipeConfig.model_validate(change)
    with pytest.raises(ValidationError, match="format"):
        RecipeConfig.model_validate(fields | {"decoder": {"format": "int4"}})
