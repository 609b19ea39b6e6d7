"""What a weight is called in its checkpoint, and what the section of a recipe may say."""

import pytest

pytest.importorskip("onnx_ir")

from pydantic import ValidationError

from rtgen.config.load import load_recipe
from rtgen.config.recipe import WeightQuantization
from rtgen.quantize.selection import checkpoint_name


@pytest.mark.parametrize("name", ["model.head.head.weight", "head.head.weight.stored", "model.head.head.weight.stored"])
def test_patterns_see_the_names_of_the_checkpoint(name):
    assert checkpoint_name(name) == "head.head.weight"


@pytest.mark.parametrize(
    "fields", [{"bits": 3}, {"block": 48}, {"components": ()}, {"components": ("decoder",)}, {"a": 1}]
)
def test_settings_that_nothing_implements_are_refused(fields):
    with pytest.raises(ValidationError):
        WeightQuantization.model_validate(fields)


def test_the_shipped_recipe_quantizes_the_denoiser_and_the_others_nothing():
    weights = load_recipe("int4-weights").weights
    assert weights is not None and weights.components == ("denoiser",) and weights.block == 64
    assert load_recipe("fp16").weights is None
