"""AttentionConv on a CUDA GPU against float64: random shapes, ragged ends, poisoned memory, both kernels, graphs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtgen.plugins import attention_conv_kernel  # noqa: E402
from rtgen.plugins.attention_conv import PLUGIN, torch_op  # noqa: E402
from rtgen.plugins.base import TensorView  # noqa: E402
from rtgen.plugins.loader import current_kernels  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

TOLERANCE = 5e-3
"""Of the output without its residual, so that the residual hides nothing."""


WIDTHS = [16, 64, 112, 128, 192, 256, 320, 384, 400, 512]
"""All ways in which channels are divided up, with and without padding."""


def tensors(channels, out_channels, streams, frames, height, width, seed, sharpness=1.0):
    """``sharpness`` multiplies queries and keys: large ones leave a few keys with all of the weight."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, device="cuda")

    qkv = noise(streams * frames, height * width, 3 * channels)
    qkv[..., : 2 * channels] *= sharpness
    weight = noise(out_channels, channels) * channels**-0.5
    residual = noise(streams, out_channels, frames, height, width) * 0.1
    return [tensor.half() for tensor in (qkv, weight, noise(out_channels) * 0.1, residual)]


def reference(qkv, weight, bias, residual, scale=0.0):
    query, key, value = qkv.double().chunk(3, dim=-1)
    scores = query @ key.transpose(1, 2) * (scale or weight.shape[1] ** -0.5)
    projected = scores.softmax(dim=-1) @ value @ weight.double().T + bias.double()
    streams, out_channels, frames, height, width = residual.shape
    image = projected.reshape(streams, frames, height, width, out_channels).permute(0, 4, 1, 2, 3)
    return residual.double() + image


def launch(inputs, scale=0.0):
    """The kernel into an output of NaN, with NaN in all memory that torch hands out around it."""
    output = torch.full_like(inputs[3], float("nan"))
    attributes = {"channels": inputs[1].shape[1], "scale": scale}
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    kernels = current_kernels(PLUGIN.kernel.sources(attributes, capability))
    views = [TensorView(tensor.data_ptr(), tuple(tensor.shape), "float16") for tensor in (*inputs, output)]
    PLUGIN.kernel.launch(kernels, torch.cuda.current_stream().cuda_stream, views[:4], views[4:], 0, attributes)
    return output


def check(inputs, scale=0.0):
    found, wanted = launch(inputs, scale).double(), reference(*inputs, scale)
    residual = inputs[3].double()
    error = ((found - wanted).norm() / (wanted - residual).norm()).item()
    assert error < TOLERANCE, f"{error} for {[tuple(tensor.shape) for tensor in inputs]}"
    return error


@pytest.fixture(params=["as planned", "without warpgroup products"])
def kernels_of(request, monkeypatch):
    """Both kernels where the GPU has two."""
    if request.param != "as planned":
        monkeypatch.setattr(attention_conv_kernel, "_WARPGROUP_PRODUCTS", ())
    return request.param


@pytest.mark.parametrize("channels", WIDTHS)
def test_every_width(kernels_of, channels):
    check(tensors(channels, channels, 1, 2, 7, 19, seed=channels))


@pytest.mark.parametrize("tokens", [1, 7, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 255, 1000])
def test_ragged_lengths(kernels_of, tokens):
    check(tensors(384, 384, 1, 1, 1, tokens, seed=tokens))


@pytest.mark.parametrize("seed", range(24))
def test_random_shapes(kernels_of, seed):
    random = np.random.default_rng(seed)
    channels = int(random.choice(WIDTHS))
    out_channels = int(random.integers(1, 600))
    streams, frames = (int(random.integers(1, 4)) for _ in range(2))
    height, width = (int(random.integers(1, 40)) for _ in range(2))
    sharpness = float(random.choice([0.1, 1.0, 3.0]))
    scale = float(random.choice([0.0, 0.02, 0.1]))
    check(tensors(channels, out_channels, streams, frames, height, width, seed, sharpness), scale)


def test_the_size_of_wan(kernels_of):
    check(tensors(384, 384, 1, 1, 60, 104, seed=0))


@pytest.mark.parametrize("tokens", [1, 33, 65, 128, 700])
def test_ragged_lengths_of_the_widest(kernels_of, tokens):
    check(tensors(512, 512, 1, 1, 1, tokens, seed=tokens))


@pytest.mark.parametrize("tile", attention_conv_kernel._TILES, ids=str)
def test_every_tile_shape(monkeypatch, tile):
    monkeypatch.setattr(attention_conv_kernel, "_WARPGROUP_PRODUCTS", ())
    monkeypatch.setattr(attention_conv_kernel, "_TILES", (tile,))
    check(tensors(208, 80, 2, 1, 9, 17, seed=1))


def test_scores_that_grow_from_key_to_key(kernels_of):
    """The running maximum is raised again and again, and lags behind in between."""
    inputs = tensors(64, 64, 1, 1, 1, 500, seed=2)
    ramp = torch.linspace(0, 40, 500, device="cuda").half()
    inputs[0][0, :, 0], inputs[0][0, :, 64] = 8.0, ramp
    check(inputs)
    inputs[0][0, :, 64] = -ramp
    check(inputs)


def test_what_lies_beyond_the_tensors_is_never_used(kernels_of):
    """A frame's neighbours in memory are NaN: keys past the last one, and places past the last row."""
    inputs = tensors(112, 48, 1, 3, 5, 9, seed=3)
    wanted = launch(inputs)
    inputs[0][0], inputs[0][2] = float("nan"), float("nan")
    found = launch(inputs)
    assert torch.equal(found[:, :, 1], wanted[:, :, 1])
    assert found[:, :, 0].isnan().all() and found[:, :, 2].isnan().all()


def test_two_runs_give_the_same_bits(kernels_of):
    inputs = tensors(384, 384, 1, 1, 30, 52, seed=4)
    first = launch(inputs)
    assert all(torch.equal(first, launch(inputs)) for _ in range(20))


def test_a_cuda_graph_replays_it_on_new_numbers(kernels_of):
    inputs = tensors(128, 128, 1, 2, 8, 9, seed=5)
    launch(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = torch_op()(*inputs)
    for seed in (6, 7):
        for tensor, fresh in zip(inputs, tensors(128, 128, 1, 2, 8, 9, seed), strict=True):
            tensor.copy_(fresh)
        output.fill_(float("nan"))
        graph.replay()
        wanted = reference(*inputs)
        assert ((output.double() - wanted).norm() / (wanted - inputs[3].double()).norm()).item() < TOLERANCE


def test_the_torch_op_on_cuda_and_on_the_processor_agree(kernels_of):
    inputs = tensors(96, 40, 2, 2, 6, 7, seed=8)
    on_host = torch_op()(*(tensor.cpu() for tensor in inputs), 0.05)
    torch.testing.assert_close(torch_op()(*inputs, 0.05).cpu(), on_host, atol=4e-3, rtol=4e-3)


def test_the_kernel_takes_float16_only():
    inputs = [tensor.float() for tensor in tensors(64, 64, 1, 1, 2, 2, seed=9)]
    with pytest.raises(ValueError, match="float16"):
        torch_op()(*inputs)


def test_a_width_other_than_the_attribute_is_refused():
    from rtgen.errors import BuildError

    inputs = tensors(64, 64, 1, 1, 2, 2, seed=9)
    views = [TensorView(tensor.data_ptr(), tuple(tensor.shape), "float16") for tensor in inputs]
    attributes = {"channels": 128, "scale": 0.0}
    with pytest.raises(BuildError, match="128 channels got tensors"):
        PLUGIN.kernel.launch(None, 0, views, views[3:], 0, attributes)
