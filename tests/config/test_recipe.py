"""What a recipe may say, and what the shipped ones say."""

import pytest
from pydantic import ValidationError

from rtgen.config.load import can_run, list_gpus, list_recipes, load_gpu, load_recipe
from rtgen.config.recipe import Quantization, RecipeConfig

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
