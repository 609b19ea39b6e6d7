"""What is estimated: a model on a GPU with everything that can be set, checked."""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from rtgen.build.chosen_ring import chosen_ring
from rtgen.build.plan import with_decoder
from rtgen.build.sizes import check_size
from rtgen.config.gpu import GpuConfig
from rtgen.config.kv_cache import kv_cache_of, with_kv_bits
from rtgen.config.load import load_gpu, load_model, load_recipe, recipe_for
from rtgen.config.model import CacheConfig, ModelConfig, Size
from rtgen.config.recipe import KVCacheFormat, RecipeConfig
from rtgen.errors import UsageError

MOST_STEPS = 1000
"""Noise levels that there are."""

KV_BITS = (16, 8, 4)
"""What GPUs may hold keys and values in."""


@dataclass(frozen=True)
class Setting:
    """Window and decoder are those of ``model``, which may differ from the config file."""

    gpu: GpuConfig
    model: ModelConfig
    recipe: RecipeConfig
    size: Size
    """Height and width in pixels."""
    kv_bits: int
    steps: int
    """Denoise passes of a chunk; the clean pass comes on top."""
    eager: bool = False
    """As a public implementation without fused kernels would run it: to compare with published figures."""

    @property
    def precision_bits(self) -> int:
        return _precision_bits(self.recipe)

    @property
    def ring(self) -> KVCacheFormat:
        """What the K/V ring holds."""
        bits = self.kv_bits if self.kv_bits < self.precision_bits else 16
        return kv_cache_of(self.model, with_kv_bits(self.recipe, bits))

    def with_recipe(self, recipe: RecipeConfig) -> "Setting":
        """With the bits of the recipe's own ring, unless others than the recipe's were asked for before."""
        is_own = self.kv_bits == _own_bits(self.recipe)
        return replace(self, recipe=recipe, kv_bits=_own_bits(recipe) if is_own else self.kv_bits)

    @property
    def frames(self) -> int:
        """Of a chunk."""
        return self.model.cache.chunk * self.model.autoencoder.temporal_stride

    def with_window(self, window: int) -> "Setting":
        """Raises UsageError for a window that cannot be."""
        return replace(self, model=_with_window(self.model, window))

    def with_decoder(self, decoder: str) -> "Setting":
        """Raises UsageError for a decoder that the model does not offer."""
        return replace(self, model=with_decoder(self.model, decoder))


def setting(
    gpu: str,
    model: str,
    *,
    recipe: str | None = None,
    size: Size | None = None,
    kv_bits: int | None = None,
    window: int | None = None,
    steps: int | None = None,
    decoder: str | None = None,
) -> Setting:
    """Names and numbers as a user gives them; None is the default of the GPU or the model.

    Raises UnknownNameError, UsageError, SizeError or ConfigError, each with a hint.
    """
    target, config = load_gpu(gpu), load_model(model)
    numerics = load_recipe(recipe or target.default_recipe)
    recipe_for(target, numerics)
    if window is not None:
        config = _with_window(config, window)
    config = with_decoder(config, decoder)
    frame = size or config.resolution.default
    check_size(config, frame)
    bits = _kv_bits(target, config, numerics, kv_bits)
    return Setting(target, config, numerics, frame, bits, _steps(config, steps))


def possible_window(model: ModelConfig, window: int) -> bool:
    """Whether the K/V ring can hold so many latent frames."""
    try:
        _with_window(model, window)
    except UsageError:
        return False
    return True


def possible_kv_bits(setting: Setting) -> tuple[int, ...]:
    """What the K/V ring of a model can hold on a GPU; nothing to choose from on a processor."""

    def is_possible(bits: int) -> bool:
        try:
            _kv_bits(setting.gpu, setting.model, setting.recipe, bits)
        except UsageError:
            return False
        return True

    return tuple(bits for bits in KV_BITS if setting.gpu.compute_capability is not None and is_possible(bits))


def _with_window(model: ModelConfig, window: int) -> ModelConfig:
    fields: dict[str, Any] = {**model.cache.model_dump(), "window": window}
    try:
        cache = CacheConfig.model_validate(fields)
    except ValidationError as error:
        chunk, sink = model.cache.chunk, model.cache.sink
        least = sink + 2 * chunk if sink else chunk
        near = min(max(round(window / chunk) * chunk, least), model.cache.position_limit // chunk * chunk)
        text = (
            error.errors(include_url=False, include_context=False)[0]["msg"]
            .removeprefix("Value error, ")
            .removeprefix("Input ")
        )
        raise UsageError(f"{model.name} cannot have a window of {window}: {text}", hint=f"--window {near}") from None
    return model.model_copy(update={"cache": cache})


def _precision_bits(recipe: RecipeConfig) -> int:
    return 16 if recipe.precision == "float16" else 32


def _own_bits(recipe: RecipeConfig) -> int:
    """Of the recipe's ring."""
    return recipe.kv_cache.bits if recipe.kv_cache.is_coded else _precision_bits(recipe)


def _kv_bits(gpu: GpuConfig, model: ModelConfig, recipe: RecipeConfig, bits: int | None) -> int:
    if bits is None or bits == _precision_bits(recipe):
        chosen_ring(gpu, model, recipe, bits)
        return _own_bits(recipe) if bits is None else bits
    if gpu.compute_capability is None:
        raise UsageError(
            f"there is no estimate of a K/V ring of {bits} bits on {gpu.name}, which has no kernel for it",
            hint="leave --kv-bits out, or name a GPU",
        )
    chosen_ring(gpu, model, recipe, bits)
    return bits


def _steps(model: ModelConfig, steps: int | None) -> int:
    if steps is None:
        return len(model.schedule.timesteps)
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"{steps} denoise passes are not possible", hint=f"--steps 1 to {MOST_STEPS}")
    return steps
