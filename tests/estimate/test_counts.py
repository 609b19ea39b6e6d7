"""Operations, parameters and states as counted are those of the real modules."""

import tomllib
from typing import Any

import pytest

from rtgen.config.load import load_model
from rtgen.config.model import ModelConfig
from rtgen.estimate.decoder import decoder_run
from rtgen.estimate.denoiser import denoiser_pass, other_parameters, pass_shape
from rtgen.estimate.memory import text_parameters
from rtgen.estimate.operations import Attention, Elementwise, Product
from tests.conftest import CONFIGS

torch = pytest.importorskip("torch")

SMALL = [ModelConfig.model_validate(tomllib.loads(text)) for text in CONFIGS.values()]
PUBLISHED = [load_model(name) for name in ("postcard", "wan2.1-1.3b-self-forcing", "longlive-1.3b")]
WITH_VAE = [model.model_copy(update={"decoder": "vae"}) for model in PUBLISHED if model.decoder != "vae"]
MODELS = [pytest.param(model, id=f"{model.name}-{model.decoder}") for model in (*SMALL, *PUBLISHED, *WITH_VAE)]


def on_meta(component: str, model: ModelConfig) -> Any:
    """The real module without memory for its weights: counting needs none, so full-size models are counted too."""
    from rtgen.models.registry import create

    with torch.device("meta"):
        return create(component, model)


def counted(call: Any) -> int:
    """Operations of a call, by torch's own counter, with attention as the two products it is made of."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_a_pass_has_the_operations_of_the_real_denoiser(model: ModelConfig) -> None:
    size, module = model.resolution.default, on_meta("denoiser", model)
    shape, config = pass_shape(model, size), model.denoiser
    latent = (
        1,
        model.autoencoder.latent_channels,
        shape.chunk,
        *(side // model.autoencoder.spatial_stride for side in size),
    )

    def attend(layer: int, query: Any, key: Any, value: Any) -> Any:
        ring = torch.empty(1, config.heads, shape.keys, config.head_dim)
        return torch.nn.functional.scaled_dot_product_attention(query, ring, ring)

    def one_pass() -> None:
        rotation = torch.empty(shape.tokens, config.head_dim // 2, 2)
        context = torch.empty(1, model.text_encoder.max_tokens, model.text_encoder.dim)
        module(torch.empty(latent), torch.empty(1, shape.chunk), context, rotation, attend)

    operations = denoiser_pass(model, size)
    assert sum(item.operations for item in operations if isinstance(item, Product | Attention)) == counted(one_pass)


@pytest.mark.parametrize("model", MODELS)
def test_a_decoder_run_has_the_operations_of_the_real_decoder(model: ModelConfig) -> None:
    size, module = model.resolution.default, on_meta("decoder", model)
    sides = (side // model.autoencoder.spatial_stride for side in size)
    latent = (1, model.autoencoder.latent_channels, model.decoded_at_once, *sides)
    first = () if model.decoder == "taehv" else (torch.zeros(1, device="meta"),)
    run = decoder_run(model, size)
    operations = sum(item.operations for item in run.operations if not isinstance(item, Elementwise))
    assert operations == counted(lambda: module(torch.empty(latent), *first))


@pytest.mark.parametrize("model", MODELS)
def test_parameters_and_past_frames_are_those_of_the_real_modules(model: ModelConfig) -> None:
    size = model.resolution.default
    products = [item for item in denoiser_pass(model, size) if isinstance(item, Product)]
    assert sum(item.weights for item in products) + other_parameters(model) == parameters(on_meta("denoiser", model))
    assert text_parameters(model.text_encoder) == parameters(on_meta("text_encoder", model))
    decoder, run = on_meta("decoder", model), decoder_run(model, size)
    assert run.parameters == parameters(decoder)
    sides = (side // model.autoencoder.spatial_stride for side in size)
    with torch.device("meta"), torch.no_grad():
        latents = torch.empty(1, model.autoencoder.latent_channels, model.decoded_at_once, *sides)
        _, states = decoder(latents) if model.decoder == "taehv" else decoder(latents, torch.zeros(1))
    assert run.state == sum(state.numel() for state in states)


@pytest.mark.parametrize("model", [pytest.param(model, id=model.name) for model in (*SMALL, *PUBLISHED)])
def test_linear_layers_carry_the_names_and_shapes_of_the_checkpoint(model: ModelConfig) -> None:
    from rtgen.quantize.selection import linear_shapes

    products = [item for item in denoiser_pass(model, model.resolution.default) if isinstance(item, Product)]
    mine = {item.name: (item.outputs, item.inputs) for item in products if item.name != "patch_embedding.weight"}
    assert mine == linear_shapes(on_meta("denoiser", model))


def test_the_tiny_decoder_has_the_published_widths() -> None:
    from rtgen.estimate.decoder import TINY_WIDTHS
    from rtgen.models.taehv import WIDTHS

    assert TINY_WIDTHS == WIDTHS
