"""The kernels of W4A4Linear on a GPU: bits of codes and scales, exact integers, both kinds of tensor cores, outputs."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")

from rtgen.plugins import w4a4_linear as w4a4  # noqa: E402
from rtgen.plugins.base import TensorView  # noqa: E402
from rtgen.plugins.loader import current_kernels  # noqa: E402
from rtgen.plugins.w4a4_linear_kernel import (  # noqa: E402
    GELU,
    HOPPER_FP8,
    HOPPER_INT8,
    INT4,
    INT8,
    NONE,
    W4A4LinearKernel,
    scratch,
    tiles,
    warp_tile,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

PATHS = {"int8": INT8, "int4": INT4}
if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
    PATHS |= {"hopper-int8": HOPPER_INT8, "hopper-fp8": HOPPER_FP8}

SHAPES = [
    (1, 64, 8, 1),
    (7, 192, 24, 4),
    (145, 320, 200, 32),
    (31, 1536, 384, 32),
    (300, 704, 1000, 48),
    (1000, 1536, 1536, 32),
    (4680, 256, 2000, 32),
]
"""Tokens, width, features and rank; ragged ones, odd numbers of groups, and both tile shapes."""


@dataclass
class Layer:
    tensors: list
    gate: object
    residual: object

    @property
    def gated(self):
        return [*self.tensors, self.gate, self.residual]


def layer(tokens, width, features, rank, seed=0, *, kind="normal"):
    random = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape, deviation=1.0):
        return (torch.randn(shape, generator=random, device="cuda") * deviation).half()

    x = normal(1, tokens, width)
    if kind == "wild":  # outliers, empty groups, ties of two magnitudes and of rounding
        x[..., ::37] *= 100
        x[:, tokens // 2] = 0
        x[..., :64] = torch.randint(-16, 17, (1, tokens, 64), generator=random, device="cuda") / 2.0
    codes = torch.randint(-128, 128, (features, width // 2), generator=random, device="cuda", dtype=torch.int8)
    made = [x, codes, normal(features, width // 64, deviation=0.02)]
    made += [normal(width).exp().half(), normal(width, deviation=0.3)]
    if kind == "wild":
        made[3][:64], made[4][:64] = 1, 0
    made += [normal(rank, width, deviation=width**-0.5), normal(features, rank, deviation=0.1), normal(features)]
    frames = 3 if tokens % 3 == 0 else 1
    gate = torch.randn((1, frames, features), generator=random, device="cuda")
    residual = torch.randn((1, tokens, features), generator=random, device="cuda")
    return Layer(made, gate, residual)


def run(tensors, path, *, rotate=0, epilogue=NONE):
    """Output and workspace of a launch into poisoned memory."""
    kernel = W4A4LinearKernel(len(tensors) > 8, path)
    attributes = {"rotate": rotate, "epilogue": epilogue}
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    kernels = current_kernels(kernel.sources(attributes, capability))
    size = kernel.workspace([tuple(tensor.shape) for tensor in tensors], attributes, capability)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")
    dtype = torch.float32 if kernel.gated else torch.float16
    output = torch.full((*tensors[0].shape[:-1], len(tensors[1])), torch.nan, dtype=dtype, device="cuda")

    def views(found):
        return [TensorView(tensor.data_ptr(), tuple(tensor.shape), "float16") for tensor in found]

    stream = torch.cuda.current_stream().cuda_stream
    kernel.launch(kernels, stream, views(tensors), views([output]), workspace.data_ptr(), attributes)
    return output, workspace


def written_codes(workspace, made, path):
    """Codes [tokens, groups, 64] in their order, and scales [tokens, groups, 1], out of a workspace."""
    (_, tokens, width), features, rank = made[0].shape, made[1].shape[0], made[5].shape[0]
    groups, padded = width // 64, -(-tokens // path.token_block) * path.token_block
    steps, pieces, panel = -(-groups // 2), path.code_row // 16, padded if path.weight_row else 48
    places = scratch(path, tokens, features, width, rank)
    rows = torch.arange(panel, device="cuda")[:, None]
    raw = workspace[: padded * steps * path.code_row].view(torch.int8)
    raw = raw.reshape(padded // panel, steps, panel, pieces, 16)
    permuted = torch.arange(pieces, device="cuda") ^ (rows % 8 if pieces == 8 else rows // 2 % 4)
    raw = raw[:, :, rows, permuted].transpose(1, 2).reshape(padded, -1)
    if path is INT4:
        codes = w4a4.unpack_codes(raw).reshape(padded, -1, 64)
    else:
        codes = raw.reshape(padded, -1, 2, 2, 16).transpose(3, 4).reshape(padded, -1, 64)
    if path is HOPPER_FP8:
        codes = codes.view(torch.float8_e4m3fn).float() * 512
    if path.weight_row:
        scales = workspace[places.token_scales :][: padded * steps * 4].view(torch.float16).float()
        scales = scales.reshape(steps, padded, 2).transpose(1, 2).reshape(steps * 2, padded)[:groups]
    else:
        scales = workspace[places.token_scales :][: padded * groups * 4].view(torch.float32).reshape(groups, padded)
        scales = scales.reshape(groups, padded // 16, 8, 2).transpose(2, 3).reshape(groups, padded)
    return codes[:tokens, :groups], scales.T[:tokens, :, None]


def relative_error(found, wanted):
    assert found.isfinite().all()
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("kind", ["normal", "wild"])
@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_the_bits_of_the_reference(shape, path, rotate, kind):
    made = layer(*shape, kind=kind)
    _, workspace = run(made.tensors, PATHS[path], rotate=rotate)
    smooth = made.tensors[0][0].float() * made.tensors[3].float() - made.tensors[4].float()
    codes, scales = w4a4.quantize_groups(w4a4.rotate_groups(smooth) if rotate else smooth)
    found_codes, found_scales = written_codes(workspace, made.tensors, PATHS[path])
    assert torch.equal(found_scales, scales)
    assert torch.equal(found_codes.float(), codes)


@pytest.mark.parametrize("spread", [8, 1])
@pytest.mark.parametrize("path", PATHS)
def test_sums_of_integers_are_exact(path, spread):
    made = layer(300, 1024, 333, 8)
    random = torch.Generator("cuda").manual_seed(5)
    integers = torch.randint(-spread, spread, (300, 1024), generator=random, device="cuda")
    codes = torch.randint(-spread, spread, (333, 1024), generator=random, device="cuda")
    integers[:2, 64:], codes[:3, 64:] = -8, -8  # the largest sums
    integers[2:4, 64:], codes[3:6, 64:] = 7, 7
    integers[4:6, 1::2], codes[6:9, 1::2] = 7, -8  # large numbers that cancel
    integers[6:8, ::2], codes[9:12, ::2] = -8, -8
    integers[:, ::64] = -8  # every group's scale is 1
    made.tensors[0] = integers.half()[None]
    made.tensors[1] = ((codes[:, ::2] & 15) | (codes[:, 1::2] << 4)).to(torch.int8)
    made.tensors[3:5] = [torch.full((1024,), value, device="cuda").half() for value in (1, 0)]
    made.tensors[5] = torch.zeros(8, 1024, device="cuda").half()
    for position, value in {2: 1, 6: 0, 7: 0}.items():
        made.tensors[position].fill_(value)
    made.gate, made.residual = torch.ones(1, 1, 333, device="cuda"), torch.zeros(1, 300, 333, device="cuda")
    output, _ = run(made.gated, PATHS[path])
    assert torch.equal(output[0].double(), integers.double() @ codes.double().T)


def same_bits(found):
    return all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_agree_with_the_reference_and_on_every_path_in_every_bit(shape, rotate):
    made = layer(*shape)
    bare = [*made.tensors]
    bare[6] = torch.zeros_like(bare[6])  # the branch, whose sums have another order on Hopper
    y = w4a4.linear_sums(*made.tensors, rotate)
    for epilogue in (NONE, GELU):
        found = [run(made.tensors, path, rotate=rotate, epilogue=epilogue)[0] for path in PATHS.values()]
        assert max(relative_error(one, w4a4.finish_linear(y, epilogue)) for one in found) < 1e-3
        assert same_bits(found[:2])
        assert same_bits([run(bare, path, rotate=rotate, epilogue=epilogue)[0] for path in PATHS.values()])
    found = [run(made.gated, path, rotate=rotate)[0] for path in PATHS.values()]
    assert max(relative_error(one, w4a4.finish_gated(y, made.gate, made.residual)) for one in found) < 1e-3
    assert same_bits(found[:2])
    assert same_bits([run([*bare, made.gate, made.residual], path, rotate=rotate)[0] for path in PATHS.values()])


@pytest.mark.parametrize("path", [INT8, INT4])
def test_every_tile_shape_gives_the_same_bits(monkeypatch, path):
    made = layer(500, 1536, 700, 32)
    found = []
    for tile in (*tiles(path, "8.6"), *tiles(path, "7.5"), warp_tile(path, 3, 4, 3, 1, 1.0)):
        monkeypatch.setattr("rtgen.plugins.w4a4_linear_kernel.tiles", lambda *_, tile=tile: (tile,))
        found.append(run(made.tensors, path)[0])
    assert same_bits(found)


def test_gelu_is_as_near_to_its_formula_as_float16_lets_it():
    made = layer(64, 64, 512, 8)
    for position in (2, 5, 6):
        made.tensors[position].fill_(0)
    made.tensors[7] = torch.linspace(-12, 12, 512, device="cuda").half()
    output, _ = run(made.tensors, INT8, epilogue=GELU)
    exact = torch.nn.functional.gelu(made.tensors[7].double(), approximate="tanh")
    assert ((output[0] - exact).abs() <= exact.abs() * 2**-10 + 1e-7).all()


@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_makes_its_token_nan_and_no_other(rotate, bad):
    made = layer(150, 192, 96, 8)
    for path in PATHS.values():
        clean, _ = run(made.tensors, path, rotate=rotate)
        spoilt = [made.tensors[0].clone(), *made.tensors[1:]]
        spoilt[0][0, 49, 70] = bad
        output, workspace = run(spoilt, path, rotate=rotate)
        assert output[0, 49].isnan().all()
        others = [token for token in range(150) if token != 49]
        assert torch.equal(output[0, others], clean[0, others])
        codes, scales = written_codes(workspace, made.tensors, path)
        assert scales[49, :, 0].isnan().tolist() == [False, True, False] and not codes[49, 1].any()


def test_torch_ops_launch_the_kernels_and_graphs_replay_them():
    made, other = layer(200, 512, 328, 16), layer(200, 512, 328, 16, seed=1)
    linear, gated = w4a4.torch_op(), w4a4.gated_torch_op()
    wanted = [linear(other.tensors[0], *made.tensors[1:], 1, GELU), gated(other.tensors[0], *made.gated[1:])]
    x = made.tensors[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [linear(x, *made.tensors[1:], 1, GELU), gated(x, *made.gated[1:])]
    x.copy_(other.tensors[0])
    for output in found:
        output.fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_prepared_constants_the_bits_are_the_same(shape, rotate):
    made = layer(*shape)
    constants = w4a4.prepared_constants(made.tensors[1:])
    assert (constants is not None) == (torch.cuda.get_device_capability() == (9, 0))
    linear, gated = w4a4.torch_op(), w4a4.gated_torch_op()
    wanted = linear(*made.tensors, rotate, GELU), gated(*made.gated, rotate)
    found = linear(*made.tensors, rotate, GELU, constants), gated(*made.gated, rotate, constants)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    # Prepared and used without a pause, which is how a captured graph could begin.
    soon = linear(*made.tensors, rotate, GELU, w4a4.prepared_constants(made.tensors[1:]))
    assert torch.equal(soon, wanted[0])


def test_layers_in_a_row_wait_for_each_other():
    """On Hopper a kernel starts before the one ahead of it has ended; the second layer reads what the first wrote."""
    first, second = layer(1000, 512, 1536, 32), layer(1000, 1536, 512, 32, seed=1)
    linear = w4a4.torch_op()

    def both(between):
        found = linear(first.tensors[0], *first.tensors[1:], 0, NONE)
        between()
        return linear(found, *second.tensors[1:], 1, NONE)

    wanted = both(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [both(lambda: None) for _ in range(10)]
    for output in found:
        output.fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(output, wanted) for output in found)


def test_torch_ops_take_views():
    made = layer(30, 192, 40, 4)
    wide = torch.randn(1, 30, 200, device="cuda").half()
    view = wide[..., 3:195]
    output = w4a4.torch_op()(view, *made.tensors[1:])
    assert torch.equal(output, w4a4.torch_op()(view.contiguous(), *made.tensors[1:]))
