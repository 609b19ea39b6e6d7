"""Counts of one pass of the denoiser (``rtgen/models/dit.py`` in the graph of ``rtgen/export/denoiser.py``)."""

from dataclasses import dataclass

from rtgen.config.model import ModelConfig, Size
from rtgen.estimate.operations import Attention, Elementwise, Operation, Part, Product


@dataclass(frozen=True)
class PassShape:
    """How much one pass sees."""

    tokens: int
    """Of the chunk in the making."""
    keys: int
    """Of a full window, the chunk included."""
    text: int
    """Prompt positions; padded ones count, since Wan does not mask them."""
    chunk: int
    """Latent frames."""


def pass_shape(model: ModelConfig, size: Size) -> PassShape:
    """Of frames of ``size`` pixels once the window is full."""
    frame = (size[0] // model.size_step[0]) * (size[1] // model.size_step[1])
    cache = model.cache
    return PassShape(cache.chunk * frame, cache.window * frame, model.text_encoder.max_tokens, cache.chunk)


def denoiser_pass(model: ModelConfig, size: Size) -> list[Operation]:
    """All operations of a pass. Denoise passes and the clean pass are the same graph, so they cost the same."""
    shape = pass_shape(model, size)
    config, layers = model.denoiser, range(model.denoiser.layers)
    return [
        *_around(model, shape),
        *(item for layer in layers for item in _products(f"blocks.{layer}", config.dim, config.ffn_dim, shape)),
        *(item for _ in layers for item in _attentions(config.dim, shape)),
        *(item for _ in layers for item in _elementwise(config.dim, config.ffn_dim, shape)),
    ]


def other_parameters(model: ModelConfig) -> int:
    """Parameters that are no matrix of a linear layer: biases, norms, modulation. They stay in the precision."""
    config, channels = model.denoiser, model.autoencoder.latent_channels
    dim, patch = config.dim, channels * config.patch[1] * config.patch[2]
    attention = 2 * (4 * dim + 2 * dim)  # biases of q, k, v, o, and the norms of q and k, of both attentions
    block = attention + 2 * dim + (config.ffn_dim + dim) + 6 * dim  # norm3, feed-forward biases, modulation
    return config.layers * block + (dim + 2 * dim + 2 * dim + 6 * dim) + (patch + 2 * dim)


def _around(model: ModelConfig, shape: PassShape) -> list[Operation]:
    """Embeddings before the blocks and the head after them."""
    config, dim = model.denoiser, model.denoiser.dim
    patch = model.autoencoder.latent_channels * config.patch[1] * config.patch[2]
    rows: tuple[tuple[str, int, int, int], ...] = (
        ("patch_embedding", shape.tokens, patch, dim),
        ("text_embedding.0", shape.text, model.text_encoder.dim, dim),
        ("text_embedding.2", shape.text, dim, dim),
        ("time_embedding.0", shape.chunk, config.frequency_dim, dim),
        ("time_embedding.2", shape.chunk, dim, dim),
        ("time_projection.1", shape.chunk, dim, 6 * dim),
        ("head.head", shape.tokens, dim, patch),
    )
    products = [Product("projections", f"{name}.weight", *sizes) for name, *sizes in rows]
    wide = shape.tokens * (dim + 8 * patch)  # the stream into the head; latents mixed, and both estimates out
    return [*products, Elementwise("elementwise", wide, shape.tokens * dim)]


def _products(block: str, dim: int, ffn: int, shape: PassShape) -> list[Operation]:
    tokens, text = shape.tokens, shape.text
    rows: tuple[tuple[Part, str, int, int, int], ...] = (
        *(("projections", f"self_attn.{name}", tokens, dim, dim) for name in "qkvo"),
        *(("projections", f"cross_attn.{name}", tokens, dim, dim) for name in "qo"),
        *(("projections", f"cross_attn.{name}", text, dim, dim) for name in "kv"),
        ("ffn", "ffn.0", tokens, dim, ffn),
        ("ffn", "ffn.2", tokens, ffn, dim),
    )
    return [Product(part, f"{block}.{name}.weight", *sizes) for part, name, *sizes in rows]


def _attentions(dim: int, shape: PassShape) -> list[Operation]:
    return [
        Attention("self_attention", shape.tokens, shape.keys, dim, over_ring=True),
        Attention("cross_attention", shape.tokens, shape.text, dim),
    ]


def _elementwise(dim: int, ffn: int, shape: PassShape) -> list[Operation]:
    """Of a block, with each chain of them fused into one kernel, as compilers do it.

    The residual stream x is float32; branches are in the recipe's precision.
    """
    stream, hidden, text = shape.tokens * dim, shape.tokens * ffn, shape.text * dim

    def kernel(wide: int, narrow: int) -> Elementwise:
        return Elementwise("elementwise", wide, narrow)

    return [
        kernel(stream, stream),  # norm1 and its modulation
        kernel(0, 4 * stream),  # norm and rotation of q and k
        kernel(2 * stream, stream),  # gate and residual
        kernel(stream, stream),  # norm3
        kernel(0, 2 * stream + 2 * text),  # norms of the cross-attention's q and k
        kernel(2 * stream, stream),  # residual
        kernel(stream, stream),  # norm2 and its modulation
        kernel(0, 2 * hidden),  # GELU
        kernel(2 * stream, stream),  # gate and residual
    ]
