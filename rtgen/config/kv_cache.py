"""How the K/V ring of a build is kept: what the recipe says, but for what the user or the model wants otherwise."""

import struct
from math import ceil

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


def page_entries(model: ModelConfig, ring: KVCacheFormat) -> int:
    """Of the table that says where each latent frame's tokens lie; one, without a meaning, where nothing is pruned."""
    return max(pool_rows(model, ring), 1)


def most_live(window: int, sink: int, chunk: int, keep: float, recent: float) -> int:
    """The most latent frames that the K/V ring holds the tokens of at a time, the chunk in the making among them.

    Of F valid frames a pass leaves max(round(keep * F), those that are never pruned), by the rule of
    docs/plugins/kv_cache_attention.md in float32; that grows with F, and F is the window at most.
    """
    if keep >= 1:
        return window
    newest = max(chunk, ceil(_float32(_float32(recent) * window) - 1e-4))
    return max(min(newest + sink, window), round(_float32(_float32(keep) * window)))


def ring_frames(model: ModelConfig, ring: KVCacheFormat) -> int:
    """Latent frames of tokens that the ring has memory for: the window, or where frames are pruned as many as stay."""
    cache = model.cache
    return most_live(cache.window, cache.sink, cache.chunk, ring.keep, ring.recent)


def _float32(value: float) -> float:
    """As kernels have it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
