"""The terms of the memory plan (``rtgen.engine.memory_plan``), estimated without building."""

from collections.abc import Iterable

from rtgen.config.decoder_codes import has_coded_decoder
from rtgen.config.kv_cache import page_entries, pool_rows, ring_frames
from rtgen.config.model import TextEncoderConfig
from rtgen.engine.manifest import MemoryPlan
from rtgen.engine.memory_plan import CONTEXT_BYTES, GIB
from rtgen.estimate.decoder import DecoderRun
from rtgen.estimate.denoiser import other_parameters, pass_shape
from rtgen.estimate.efficiencies import Activations
from rtgen.estimate.numerics import Numerics, weight_bytes
from rtgen.estimate.operations import Product


def memory_plan(
    numerics: Numerics, products: Iterable[Product], decoder: DecoderRun, activations: Activations
) -> MemoryPlan:
    """Bytes by term, of a package for this frame size alone."""
    setting, item = numerics.setting, numerics.item
    model, gpu = setting.model, setting.gpu
    shape = pass_shape(model, setting.size)
    on_device = model.text_encoder.runs_on == "device"
    weights = sum(weight_bytes(product, numerics) for product in products)
    weights += (other_parameters(model) + decoder.parameters) * item
    weights += text_parameters(model.text_encoder) * item if on_device else 0
    hidden = shape.tokens * (2 * model.denoiser.ffn_dim + model.denoiser.dim) * item
    stream = shape.tokens * model.denoiser.dim * 4
    past_item = 1 if has_coded_decoder(model, setting.recipe) else item
    per_decoder = activations.taehv if model.decoder == "taehv" else activations.vae
    return MemoryPlan(
        weights=round(weights),
        activations=round(max((hidden + stream) * activations.denoiser, decoder.peak * item * per_decoder)),
        kv_ring=ring_bytes(numerics),
        decoder_state=2 * decoder.state * past_item,  # one is read while the other is written
        io=_io_bytes(numerics),
        context=CONTEXT_BYTES if gpu.compute_capability else 0,
        vram=round(gpu.vram_gib * GIB),
    )


def ring_bytes(numerics: Numerics) -> int:
    """Of all layers (``rtgen/export/ring_states.py``)."""
    model, ring = numerics.setting.model, numerics.setting.ring
    shape, config = pass_shape(model, numerics.setting.size), model.denoiser
    rows = ring_frames(model, ring) * shape.tokens // shape.chunk + pool_rows(model, ring)
    layer = 2 * rows * config.dim * numerics.kv_bytes
    if ring.is_coded:
        layer += 4 * config.dim + 8 * page_entries(model, ring)  # float16 centres, int64 pages
    return round(config.layers * layer)


def text_parameters(config: TextEncoderConfig) -> int:
    """Of the text encoder (``rtgen/models/text_encoder.py``)."""
    inner = config.heads * config.head_dim
    block = 4 * config.dim * inner + 3 * config.dim * config.ffn_dim + 2 * config.dim
    return (
        config.vocabulary * config.dim + config.layers * (block + config.position_buckets * config.heads) + config.dim
    )


def _io_bytes(numerics: Numerics) -> int:
    """Latents in and out of denoiser and decoder, context, frames."""
    setting, model = numerics.setting, numerics.setting.model
    stride = model.autoencoder.spatial_stride
    places = (setting.size[0] // stride) * (setting.size[1] // stride)
    latents = model.autoencoder.latent_channels * model.cache.chunk * places * 4
    context = model.text_encoder.max_tokens * model.text_encoder.dim * 4
    if model.text_encoder.runs_on == "device":
        context *= 2  # an output of the one component and an input of the other
    frames = model.decoded_at_once * model.autoencoder.temporal_stride * setting.size[0] * setting.size[1] * 3
    return 5 * latents + context + frames
