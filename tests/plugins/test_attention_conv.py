"""AttentionConv: its function body in ONNX Runtime, its torch op and numpy agree."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.plugins.attention_conv import PLUGIN, torch_op  # noqa: E402

TOLERANCE = {np.float32: 1e-5, np.float16: 5e-3}
SCALES = (0.0, 0.125)


def session_of(kind, scale):
    """ONNX Runtime on a model with one node, which has nothing but the function body to run it by."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]>
        net ({kind}[B,N,W] qkv, {kind}[O,C] weight, {kind}[O] bias, {kind}[S,O,F,H,V] residual)
            => ({kind}[S,O,F,H,V] output) {{
            output = rtgen.AttentionConv <channels = 16, scale = {scale}> (qkv, weight, bias, residual)
        }}"""
    )
    model.functions.append(PLUGIN.function())
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sessions():
    kinds = {np.float32: "float", np.float16: "float16"}
    return {(kind, scale): session_of(name, scale) for kind, name in kinds.items() for scale in SCALES}


def reference(qkv, weight, bias, residual, scale):
    """Place by place and channel by channel, in float64."""
    query, key, value = np.split(qkv.astype(np.float64), 3, axis=2)
    scores = query @ key.transpose(0, 2, 1) * (scale or 1 / np.sqrt(weight.shape[1]))
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    projected = shares @ value @ weight.astype(np.float64).T + bias
    streams, _, frames, height, width = residual.shape
    output = residual.astype(np.float64)
    for stream, frame, row, column in np.ndindex(streams, frames, height, width):
        output[stream, :, frame, row, column] += projected[stream * frames + frame, row * width + column]
    return output


@st.composite
def cases(draw):
    kind = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    channels, out_channels = draw(st.integers(1, 24)), draw(st.integers(1, 9))
    streams, frames, height, width = (draw(st.integers(1, most)) for most in (2, 3, 4, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def noise(*shape):
        return random.standard_normal(shape).astype(kind)

    return (
        noise(streams * frames, height * width, 3 * channels),
        noise(out_channels, channels),
        noise(out_channels),
        noise(streams, out_channels, frames, height, width),
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=cases(), scale=st.sampled_from(SCALES))
def test_body_torch_op_and_numpy_agree(sessions, arguments, scale):
    kind = arguments[0].dtype.type
    expected = reference(*arguments, scale)
    [body] = sessions[kind, scale].run(None, dict(zip(PLUGIN.inputs, arguments, strict=True)))
    op = torch_op()(*map(torch.from_numpy, arguments), scale).numpy()
    error = TOLERANCE[kind] * max(1.0, np.abs(expected).max())
    for found in (body, op):
        assert found.dtype == kind
        np.testing.assert_allclose(found.astype(np.float64), expected, atol=error)


def test_the_block_of_the_autoencoder_is_the_operator():
    """What the node stands for: the mid block without its norm and the product before the attention."""
    from rtgen.models.autoencoder_blocks import AttentionBlock
    from tests.models.random_weights import random_weights

    block = AttentionBlock(32)
    random_weights(block, 1)
    x = torch.randn(2, 32, 3, 4, 5)
    tokens = block.norm(x).permute(0, 2, 3, 4, 1).reshape(6, 20, 32)
    qkv = torch.nn.functional.linear(tokens, block.to_qkv.weight.flatten(1), block.to_qkv.bias)
    with torch.no_grad():
        found = torch_op()(qkv, block.proj.weight.flatten(1), block.proj.bias, x)
        torch.testing.assert_close(found, block(x))


def tensors():
    return [torch.randn(6, 20, 48), torch.randn(8, 16), torch.randn(8), torch.randn(2, 8, 3, 4, 5)]


def test_the_torch_op_passes_torch_s_own_checks():
    torch_op()
    torch.library.opcheck(torch_op(), (*tensors(), 0.5), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(6, 20, 32), "qkv is"),
        (0, torch.zeros(6, 19, 48), "qkv is"),
        (0, torch.zeros(5, 20, 48), "qkv is"),
        (2, torch.zeros(7), "do not fit 8 output channels"),
        (3, torch.zeros(2, 7, 3, 4, 5), "do not fit 8 output channels"),
        (3, torch.zeros(2, 8, 4, 5), "do not fit 8 output channels"),
        (1, torch.zeros(8, 16).half(), "one type"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(place, wrong, message):
    given = tensors()
    given[place] = wrong
    with pytest.raises(ValueError, match=message):
        torch_op()(*given)
