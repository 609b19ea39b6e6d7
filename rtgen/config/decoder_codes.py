"""Whether a model's decoder computes on codes."""

from rtgen.config.model import ModelConfig
from rtgen.config.recipe import RecipeConfig


def has_coded_decoder(model: ModelConfig, recipe: RecipeConfig) -> bool:
    """Whether a model's decoder computes on codes under a recipe; the tiny one never does."""
    return recipe.decoder is not None and model.decoder != "taehv"
