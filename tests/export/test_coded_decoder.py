"""The decoder over 8-bit codes with its channels last: what it computes, and what ONNX Runtime makes of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.errors import CheckpointError, PackageInvalidError  # noqa: E402
from rtgen.export.coded_convolution import WEIGHT_HIGHEST  # noqa: E402
from rtgen.export.coded_decoder import (  # noqa: E402
    CodedDecoderStep,
    coded_convolutions,
    export_coded_decoder,
    past_codes,
)
from rtgen.export.codes import dequantize_linear, quantize_linear  # noqa: E402
from rtgen.export.decoder import DecoderStep, past_frames  # noqa: E402
from rtgen.export.ranges import FILE_NAME, DecoderRanges, Range  # noqa: E402
from rtgen.models.autoencoder import fold_pixels  # noqa: E402
from rtgen.models.causal_conv import CausalConv3d, StreamState, upsample_nearest  # noqa: E402
from rtgen.models.channels_last_decoder import decode  # noqa: E402
from rtgen.passes.base import run_passes  # noqa: E402
from rtgen.passes.simplify import Simplify  # noqa: E402
from rtgen.quantize.calibration_set import CalibrationSet, Stream  # noqa: E402
from rtgen.quantize.decoder_ranges import observe_ranges  # noqa: E402
from rtgen.quantize.device import Device  # noqa: E402

ROWS, COLUMNS, CHUNKS = 4, 6, 3


class FloatConvolutions:
    """Those of the modules themselves, which take channels first."""

    def __init__(self, past):
        self.state = StreamState(past)

    def inner(self, convolution, x, *, doubled=False):
        x = x.permute(3, 0, 1, 2)[None]
        x = upsample_nearest(x) if doubled else x
        arguments = (x, self.state) if isinstance(convolution, CausalConv3d) else (x,)
        return convolution(*arguments)[0].permute(1, 2, 3, 0)

    last = inner


@pytest.fixture(scope="module", params=["tiny", "tiny-wan"])
def decoder(request, tiny_models):
    return tiny_models[request.param].modules()["decoder"]


@pytest.fixture(scope="module")
def latents(decoder):
    channels = decoder.config.latent_channels
    return torch.randn(CHUNKS, 1, channels, 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(5))


def ranges_of(decoder, latents):
    stream = Stream("", torch.zeros(1, 1, 1), latents[:, 0], latents[:0])
    recorded = CalibrationSet((1.0,), (len(latents) - 1,), (stream,))
    return observe_ranges(decoder, recorded, Device("cpu"), lambda *_: None)


@pytest.fixture(scope="module")
def step(decoder, latents):
    return CodedDecoderStep(decoder, ranges_of(decoder, latents))


@torch.no_grad()
def run(step, latents, states):
    """All chunks in a row: frames [F, H, W, 3]."""
    frames = []
    for number, chunk in enumerate(latents):
        made, *states = step(chunk, states, torch.tensor([float(number == 0)]))
        frames.append(made)
    return torch.cat(frames)


def zeros(config, decoder, *, coded):
    past = past_frames(config, decoder)
    dtype = torch.uint8 if coded else torch.float32
    return [
        torch.zeros(state.arranged(ROWS * state.scale, COLUMNS * state.scale), dtype=dtype)
        for state in (past_codes(past) if coded else past)
    ]


@pytest.fixture(scope="module")
def config(decoder, tiny_models):
    return next(tiny.config for tiny in tiny_models.values() if tiny.config.autoencoder == decoder.config)


@torch.no_grad()
def test_with_channels_last_and_exact_convolutions_it_is_the_decoder(decoder, latents):
    past = present = None
    for number, chunk in enumerate(latents):
        first = torch.tensor([float(number == 0)])
        expected, past = decoder(chunk, first, past)
        convolutions = FloatConvolutions(present)
        made = decode(decoder, chunk, convolutions, first)
        present = convolutions.state.present
        folded = fold_pixels(expected, decoder.config.pixel_patch)[0].permute(1, 2, 3, 0)
        torch.testing.assert_close(made, folded, atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(present, past, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_codes_cost_little_and_states_carry_over(config, decoder, step, latents):
    exact = run(DecoderStep(decoder), latents, zeros(config, decoder, coded=False)).float()
    coded = run(step, latents, zeros(config, decoder, coded=True)).float()
    drop = config.dropped_frames
    error = (exact - coded)[drop:].square().mean()
    assert exact.std() > 10
    assert 10 * torch.log10(255**2 / error) > 33
    # Without the past of the chunks before, the later chunks come out otherwise.
    forgetful = torch.cat([run(step, chunk[None], zeros(config, decoder, coded=True)) for chunk in latents]).float()
    assert (exact - forgetful)[drop:].square().mean() > 4 * error


def test_in_onnxruntime_it_is_one_integer_kernel_a_convolution(latents, decoder, config, step, tmp_path):
    graph = export_coded_decoder(config, decoder, ranges_of(decoder, latents))
    weights = frozenset(name for name, _ in step.named_parameters())
    run_passes(graph.model, [Simplify(weights)])
    onnx_ir.save(graph.model, tmp_path / "decoder.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(list(coded_convolutions(decoder)))
    assert "Conv" not in kinds and kinds.count("Transpose") < 8  # none beside a convolution

    given = {tensor.name for tensor in graph.inputs}

    def native(chunk, states, first):
        feeds = {"latents": chunk, "first": first, **{f"past_{i}": state for i, state in enumerate(states)}}
        outputs = session.run(None, {name: value.numpy() for name, value in feeds.items() if name in given})
        return tuple(map(torch.from_numpy, outputs))

    states = zeros(config, decoder, coded=True)
    ours, theirs = run(step, latents, states).float(), run(native, latents, states).float()
    assert (ours - theirs).abs().mean() < 1.5
    assert graph.states[0].input == "past_0" and graph.inputs[1].dtype == "uint8"


def test_ranges_must_be_those_of_the_decoder(decoder, latents, tmp_path):
    found = ranges_of(decoder, latents)
    found.write(tmp_path)
    assert DecoderRanges.read(tmp_path) == found
    fewer = dict(list(found.convolutions.items())[1:])
    with pytest.raises(PackageInvalidError, match=r"lack the decoder's convolution decoder\.conv1"):
        CodedDecoderStep(decoder, DecoderRanges(convolutions=fewer))
    file = tmp_path / FILE_NAME
    for content in ("{}", '{"convolutions": {}}', file.read_text(encoding="utf-8").replace('"high": ', '"high": -')):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(PackageInvalidError, match="holds no ranges of a decoder"):
            DecoderRanges.read(tmp_path)
    with file.open("wb") as stream:
        stream.truncate(2 << 20)
    with pytest.raises(PackageInvalidError, match="larger than 1 MiB"):
        DecoderRanges.read(tmp_path)
    with pytest.raises(PackageInvalidError, match="cannot be read"):
        DecoderRanges.read(tmp_path / "nowhere")


def test_numbers_that_are_not_finite_are_refused(decoder, latents):
    broken = latents.clone()
    broken[1, 0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"decoder\.conv1 meets numbers that are not finite"):
        ranges_of(decoder, broken)


def test_no_sum_of_two_products_passes_sixteen_bits():
    """What processors without VNNI add two products in."""
    assert 2 * 255 * WEIGHT_HIGHEST < 2**15


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_zero_has_a_code_and_the_range_is_covered(low, high):
    scale, zero = Range(low=low, high=high).codes
    assert 0 <= zero <= 255 and scale > 0
    for value in (low, 0.0, high):
        code = min(255, max(0, round(value / scale) + zero))
        assert abs((code - zero) * scale - value) <= 0.51 * scale + abs(value) * 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([torch.uint8, torch.int8]))
def test_rounding_is_that_of_onnx(seed, by_row, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 2, generator=generator)
    count = (3,) if by_row else ()
    scale = torch.rand(count, generator=generator) * 0.05 + 1e-3
    zero = torch.randint(0, 100, count, generator=generator).to(dtype)
    kind = onnx.TensorProto.UINT8 if dtype is torch.uint8 else onnx.TensorProto.INT8
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], axis=0),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], axis=0),
        ],
        "pair",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, count),
            helper.make_tensor_value_info("zero", kind, count),
        ],
        [
            helper.make_tensor_value_info("codes", kind, x.shape),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    codes, y = session.run(None, {"x": x.numpy(), "scale": scale.numpy(), "zero": zero.numpy()})
    np.testing.assert_array_equal(quantize_linear(x, scale, zero).numpy(), codes)
    np.testing.assert_allclose(dequantize_linear(torch.from_numpy(codes), scale, zero).numpy(), y, rtol=1e-6)
