"""What a weight is called in its checkpoint, and which weights a recipe quantizes."""

import pytest

from rtgen.config.recipe import Quantization
from rtgen.errors import UsageError
from rtgen.quantize.selection import checkpoint_name, reasons_to_keep

SHAPES = {
    "text_embedding.0.weight": (128, 128),
    "blocks.0.self_attn.q.weight": (128, 128),
    "blocks.0.self_attn.k.weight": (128, 96),
    "blocks.0.ffn.0.weight": (16, 64),
    "head.head.weight": (128, 128),
}


def settings(**fields):
    base = {"algorithm": "none", "exclude": ("head.*",), "weights": {"format": "int4", "block": 64}}
    return Quantization.model_validate(base | fields)


@pytest.mark.parametrize("name", ["model.head.head.weight", "head.head.weight.stored", "model.head.head.weight.stored"])
def test_patterns_see_the_names_of_the_checkpoint(name):
    assert checkpoint_name(name) == "head.head.weight"


def test_every_matrix_that_is_kept_has_a_reason():
    assert reasons_to_keep(SHAPES, settings()) == {
        "text_embedding.0.weight": "",
        "blocks.0.self_attn.q.weight": "",
        "blocks.0.self_attn.k.weight": "its rows of 96 have no whole blocks of 64",
        "blocks.0.ffn.0.weight": "it has fewer than 4096 weights",
        "head.head.weight": "the recipe excludes head.*",
    }


def test_what_is_calibrated_is_in_a_block():
    reasons = reasons_to_keep(SHAPES, settings(algorithm="awq"))
    assert [name for name, reason in reasons.items() if not reason] == ["blocks.0.self_attn.q.weight"]
    assert reasons["text_embedding.0.weight"] == "it is not in a block"


def test_a_recipe_that_leaves_nothing_to_quantize_is_refused():
    with pytest.raises(UsageError, match="no matrix"):
        reasons_to_keep(SHAPES, settings(exclude=("*",)))
