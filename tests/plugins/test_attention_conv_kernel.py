"""AttentionConv's kernels compile for every GPU, fit it, and are launched as planned; no GPU is needed."""

import math

import pytest

pytest.importorskip("cuda.core")

from rtgen.errors import BuildError
from rtgen.plugins.attention_conv_kernel import AttentionConvKernel, plan
from rtgen.plugins.base import TensorView
from rtgen.plugins.compiler import compile_kernel
from rtgen.plugins.loader import Pointer

SHARED = {"7.5": 64, "8.0": 163, "8.6": 99, "8.9": 99, "9.0": 227, "12.0": 99}
"""KiB a block may have."""
REGISTERS = 65_536
WIDTHS = (112, 384, 512)
"""The bundled model's decoder, Wan's, and the widest."""


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("channels", WIDTHS)
def test_shipped_kernels_compile_without_spills(capability, channels):
    chosen = plan(channels, capability)
    resources = compile_kernel(chosen.source, capability).resources[chosen.entry]
    assert resources.spill_stores == resources.spill_loads == resources.stack == 0
    assert resources.registers * chosen.threads <= REGISTERS
    assert resources.shared == 0  # all of it is dynamic


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("channels", range(16, 513, 16))
def test_every_width_has_a_plan_that_fits_the_gpu(capability, channels):
    chosen = plan(channels, capability)
    assert chosen.shared <= SHARED[capability] * 1024
    assert dict(chosen.source.defines)["CHANNELS"] == channels


@pytest.mark.parametrize(("channels", "queries"), [(128, 64), (384, 64), (512, 32)])
def test_what_does_not_fit_takes_fewer_queries(channels, queries):
    assert plan(channels, "7.5").queries == queries


@pytest.mark.parametrize("channels", [0, 8, 100, 528, 1024])
def test_a_width_without_a_kernel_is_refused(channels):
    with pytest.raises(BuildError, match=f"{channels} channels") as caught:
        plan(channels, "8.9")
    assert "multiples of 16 up to 512" in str(caught.value.hint)


@pytest.mark.parametrize("capability", ["6.1", "7.0", "13.0"])
def test_a_gpu_without_a_kernel_is_refused(capability):
    with pytest.raises(BuildError, match=f"compute capability {capability}"):
        plan(384, capability)


class Recorder:
    """Stands for the loaded kernels of a GPU."""

    def __init__(self, capability):
        self.compute_capability = capability

    def launch(self, stream, source, entry, grid, block, *arguments, shared):
        self.launched = stream, source, entry, grid, block, arguments, shared


def views(channels=384, out_channels=128, streams=2, frames=3, height=10, width=13):
    shapes = (
        (streams * frames, height * width, 3 * channels), (out_channels, channels), (out_channels,),
        (streams, out_channels, frames, height, width), (streams, out_channels, frames, height, width),
    )  # fmt: skip
    return [TensorView(256 * (place + 1), shape, "float16") for place, shape in enumerate(shapes)]


@pytest.mark.parametrize(("capability", "grid"), [("8.9", (3, 6)), ("9.0", (4, 6))])
@pytest.mark.parametrize(("scale", "factor"), [(0.0, 384**-0.5), (0.25, 0.25)])
def test_the_launch(capability, grid, scale, factor):
    recorder, tensors = Recorder(capability), views()
    attributes = {"channels": 384, "scale": scale}
    kernel = AttentionConvKernel()
    assert kernel.workspace([view.shape for view in tensors[:4]], attributes, capability) == 0
    kernel.launch(recorder, 7, tensors[:4], tensors[4:], 0, attributes)
    stream, source, entry, found, threads, arguments, shared = recorder.launched
    assert (stream, (source,)) == (7, kernel.sources(attributes, capability))
    assert (entry, found, threads, shared) == (
        source.file[:-3],
        grid,
        plan(384, capability).threads,
        plan(384, capability).shared,
    )
    assert arguments[:5] == tuple(Pointer(view.address) for view in tensors)
    assert all(type(argument) is Pointer for argument in arguments[:5])
    assert arguments[5:8] == (130, 3, 128)
    assert arguments[8] == pytest.approx(factor * math.log2(math.e))


def test_tensors_of_another_width_than_the_attribute_s_are_refused():
    tensors = views(channels=64)
    with pytest.raises(BuildError, match="128 channels got tensors"):
        AttentionConvKernel().launch(Recorder("8.9"), 0, tensors[:4], tensors[4:], 0, {"channels": 128, "scale": 0.0})
