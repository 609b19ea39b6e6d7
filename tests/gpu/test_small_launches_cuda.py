"""Every kernel a few times at small sizes, on all of its paths: what compute-sanitizer runs, as it is slow.

docs/plugins.md has the commands. Inputs are made, and results compared, on the processor: no kernel runs but those of
the plugins. Scratch memory and outputs are not initialized.
"""

import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

from rtgen.plugins import attention_conv, attention_conv_kernel, torch_launch, w4a4_linear  # noqa: E402
from rtgen.plugins import quantized_kv_cache_attention as ring_attention  # noqa: E402
from rtgen.plugins import quantized_kv_cache_attention_kernel as ring_kernel  # noqa: E402
from rtgen.plugins import w4a4_linear_kernel as w4a4_kernel  # noqa: E402
from rtgen.plugins.loader import current_kernels  # noqa: E402
from rtgen.runtime.kv_cache import RingLayout  # noqa: E402
from tests.plugins.ring_streams import Ring  # noqa: E402

TOLERANCE = 5e-3


def noise(*shape, scale=1.0):
    return (torch.randn(shape) * scale).half()


def on_gpu(tensors):
    return [tensor.cuda() for tensor in tensors]


def check(found, wanted):
    found, wanted = found.cpu().float(), wanted.float()
    assert found.isfinite().all()
    assert float((found - wanted).norm() / wanted.norm()) < TOLERANCE


@pytest.fixture
def two_multiprocessors(monkeypatch):
    """Persistent kernels take few blocks, with more than one task each, and tasks that blocks share."""

    def kernels(sources):
        loaded = current_kernels(sources)
        monkeypatch.setattr(loaded, "multiprocessors", 2)
        return loaded

    monkeypatch.setattr(torch_launch, "current_kernels", kernels)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("path", "head_dim"), [("as planned", 128), ("mma.sync", 128), ("mma.sync", 64)], ids=["planned", "mma", "mma-64"]
)
@pytest.mark.parametrize(
    ("layout", "frame_tokens", "keep"), [((3, 0, 1), 130, 1.0), ((8, 2, 2), 41, 0.5)], ids=["all", "pruned"]
)
@pytest.mark.usefixtures("two_multiprocessors")
def test_ring_attention(monkeypatch, layout, frame_tokens, keep, path, head_dim, bits):
    if path != "as planned":
        monkeypatch.setattr(ring_kernel, "_BY_GPU", {})
    prune = {"pool": layout[0], "sink": layout[1], "keep": keep} if keep < 1 else {}
    attributes = {"bits": bits, **prune}
    ring = Ring(3, head_dim, frame_tokens, RingLayout(*layout), attributes, torch.Generator().manual_seed(0))
    states = on_gpu(ring.states)
    for index in range(layout[0] // layout[2] + 1):  # the last one overwrites the oldest frames
        chunk = ring.chunk()
        found = ring_attention.attend_in_place(*on_gpu(chunk), *states, *on_gpu(ring.numbers(index)), **attributes)
        check(found, ring.attend(chunk, index))


@pytest.mark.parametrize("path", ["as planned", "mma.sync"])
@pytest.mark.parametrize(
    ("channels", "out_channels", "frames", "height", "width"),
    [(384, 384, 1, 9, 23), (512, 512, 1, 10, 14), (112, 40, 2, 5, 14)],
)
def test_attention_conv(monkeypatch, channels, out_channels, frames, height, width, path):
    if path != "as planned":
        monkeypatch.setattr(attention_conv_kernel, "_WARPGROUP_PRODUCTS", ())
    torch.manual_seed(0)
    tensors = [
        noise(frames, height * width, 3 * channels),
        noise(out_channels, channels, scale=channels**-0.5),
        noise(out_channels),
        noise(1, out_channels, frames, height, width),
    ]
    attend = attention_conv.torch_op()
    check(attend(*on_gpu(tensors)), attend(*tensors))


@pytest.mark.parametrize(
    ("tokens", "width", "features", "rank"), [(150, 320, 200, 40), (288, 384, 192, 64)], ids=["ragged", "whole"]
)
@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tile", [0, 1], ids=["tile0", "tile1"])
@pytest.mark.parametrize("path", ["INT8", "INT4", "HOPPER_INT8", "HOPPER_FP8"])
@pytest.mark.usefixtures("two_multiprocessors")
def test_w4a4_linear(monkeypatch, path, tile, gated, rotate, tokens, width, features, rank):
    """Of tiles that are not whole, rows of scratch memory that nobody wrote are multiplied, and dropped."""
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    if path.startswith("HOPPER") and here != "9.0":
        pytest.skip("wgmma is Hopper's")
    chosen = getattr(w4a4_kernel, path)
    tiles = w4a4_kernel.tiles(chosen, here)[tile : tile + 1]
    if not tiles:
        pytest.skip("the path has one tile shape")
    monkeypatch.setattr(w4a4_kernel, "PATHS", {here: chosen})
    monkeypatch.setattr(w4a4_kernel, "tiles", lambda path, compute_capability: tiles)
    torch.manual_seed(0)
    tensors = [
        noise(1, tokens, width),
        torch.randint(-128, 128, (features, width // 2), dtype=torch.int8),
        noise(features, width // 64, scale=0.01),
        noise(width, scale=0.1) + 1,
        noise(width, scale=0.1),
        noise(rank, width, scale=0.05),
        noise(features, rank, scale=0.05),
        noise(features),
    ]
    if gated:
        tensors += [torch.randn(1, 3, features), torch.randn(1, tokens, features)]
        linear = w4a4_linear.gated_torch_op()
        check(linear(*on_gpu(tensors), rotate), linear(*tensors, rotate))
    else:
        linear = w4a4_linear.torch_op()
        check(linear(*on_gpu(tensors), rotate, w4a4_kernel.GELU), linear(*tensors, rotate, w4a4_kernel.GELU))
