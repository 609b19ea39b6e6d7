"""How the K/V ring of a build is kept: what the recipe says, but for what the user or the model wants otherwise."""

from rtgen.config.model import ModelConfig
from rtgen.config.recipe import KVCacheFormat, RecipeConfig


def with_kv_bits(recipe: RecipeConfig, bits: int | None) -> RecipeConfig:
    """The recipe with a ring of other bits: 16, 8 or 4, or None for its own."""
    if bits is None or bits == recipe.kv_cache.bits:
        return recipe
    keep = recipe.kv_cache.keep if bits < 16 else 1.0
    fields = {**recipe.kv_cache.model_dump(), "bits": bits, "keep": keep}
    return recipe.model_copy(update={"kv_cache": KVCacheFormat.model_validate(fields)})


def kv_cache_of(model: ModelConfig, recipe: RecipeConfig) -> KVCacheFormat:
    """The ring's format for a model, which may want another share of live frames than the recipe."""
    ring = recipe.kv_cache
    if model.cache.keep is None or not ring.is_coded:
        return ring
    return ring.model_copy(update={"keep": model.cache.keep})


def pool_rows(model: ModelConfig, ring: KVCacheFormat) -> int:
    """Rows of the ring behind its tokens: a pooled token for each latent frame where frames may be pruned."""
    return model.cache.window if ring.keep < 1 else 0
