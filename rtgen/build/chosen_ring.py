"""What the K/V ring of a build holds, and whether that can be."""

from rtgen.config.gpu import GpuConfig
from rtgen.config.kv_cache import kv_cache_of, pool_rows, with_kv_bits
from rtgen.config.model import ModelConfig
from rtgen.config.recipe import RecipeConfig
from rtgen.errors import UsageError
from rtgen.plugins.quantized_kv_cache_attention import HEAD_DIMS, MOST_POOL_ROWS

FLOATS = "--kv-bits 16"


def chosen_ring(gpu: GpuConfig, model: ModelConfig, recipe: RecipeConfig, bits: int | None) -> RecipeConfig:
    """The recipe with a ring of ``bits``, or None for its own.

    Raises UsageError for a ring of codes that the model's heads or window do not go with: kernels are made for two
    widths of a head, the function body rotates any power of two, and pooled frames are chosen by a mask of 32 bits.
    """
    chosen = with_kv_bits(recipe, bits)
    ring, width = kv_cache_of(model, chosen), model.denoiser.head_dim
    if not ring.is_coded:
        return chosen
    any_width = [1 << power for power in range(3, HEAD_DIMS[-1].bit_length())]
    widths = HEAD_DIMS if gpu.compute_capability else any_width
    if width not in widths:
        names = " or ".join(map(str, widths))
        raise UsageError(
            f"a K/V ring of {ring.bits} bits on {gpu.name} is for heads of {names} numbers, and {model.name}'s"
            f" have {width}",
            hint=FLOATS,
        )
    if pool_rows(model, ring) > MOST_POOL_ROWS:
        raise UsageError(
            f"at most {MOST_POOL_ROWS} latent frames can be pruned, and the window of {model.name} has "
            f"{model.cache.window}",
            hint=f"{FLOATS}, or keep = 1.0 in the recipe's [kv_cache]",
        )
    return chosen
