"""W4A4Linear: its function body in ONNX Runtime, its torch op and exact rational arithmetic agree."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.plugins import w4a4_linear  # noqa: E402
from rtgen.plugins.w4a4_linear import (  # noqa: E402
    GATED,
    GROUP,
    PLUGIN,
    gated_torch_op,
    quantize_groups,
    rotate_groups,
    torch_op,
    unpack_codes,
)
from rtgen.quantize.weight_only import pack_int4  # noqa: E402

INSIDE = ("x_codes", "scale", "integers", "w_codes")
"""Values of the body that a test may look at, besides its output."""


def session_of(rotate: int, level: str):
    """ONNX Runtime on a model with one node whose function also returns :data:`INSIDE`."""
    body = PLUGIN.body.replace("=> (output)", f"=> (output, {', '.join(INSIDE)})", 1)
    assert body != PLUGIN.body
    shown = ", ".join(f"float[{', '.join(f'{name}_{axis}' for axis in range(3))}] {name}" for name in INSIDE)
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]>
        net (float16[A,B,K] x, int8[N,H] codes, float16[N,G] scales, float16[K] pre_scale, float16[K] shift,
             float16[R,K] low_rank_down, float16[N,R] low_rank_up, float16[N] bias)
            => (float16[A,B,N] output, {shown}) {{
            output, {", ".join(INSIDE)} = rtgen.W4A4Linear <rotate = {rotate}> (
                x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias)
        }}"""
    )
    model.functions.append(dataclasses.replace(PLUGIN, body=body).function())
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sessions():
    levels = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
    return {(rotate, level): session_of(rotate, level) for rotate in (0, 1) for level in levels}


def plain_session(text, plugin):
    """ONNX Runtime on a model of one node of a plugin, with the plugin's own body."""
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]> {text}')
    model.functions.append(plugin.function())
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


LAYER_INPUTS = """float16[A,B,K] x, int8[N,H] codes, float16[N,G] scales, float16[K] pre_scale, float16[K] shift,
    float16[R,K] low_rank_down, float16[N,R] low_rank_up, float16[N] bias"""


def run(session, arguments):
    names = ["output", *INSIDE]
    return dict(zip(names, session.run(names, dict(zip(PLUGIN.inputs, arguments, strict=True))), strict=True))


def layer(random, out, width, rank, magnitude=1.0):
    codes = random.integers(-8, 8, (out, width)).astype(np.int8)
    packed = np.frombuffer(bytearray(pack_int4(codes)), np.int8).reshape(out, width // 2)
    scales = (random.uniform(0.0, 0.02, (out, width // GROUP)) * magnitude).astype(np.float16)
    pre_scale = np.exp(random.normal(0, 1, width)).astype(np.float16)
    shift = random.normal(0, 0.3, width).astype(np.float16)
    down = random.normal(0, width**-0.5, (rank, width)).astype(np.float16)
    up, bias = random.normal(0, 0.1, (out, rank)).astype(np.float16), random.normal(0, 1, out).astype(np.float16)
    return codes, [packed, scales, pre_scale, shift, down, up, bias]


@st.composite
def cases(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch, tokens = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    width, out = GROUP * draw(st.integers(1, 4)), draw(st.integers(1, 70))
    x = random.normal(0, 1, (batch, tokens, width)) * 10.0 ** draw(st.integers(-6, 2))
    kind = draw(st.sampled_from(["plain", "outliers", "zeros", "ties", "equal"]))
    if kind == "outliers":
        x[..., random.integers(0, width, 3)] *= 100
    elif kind == "zeros":
        x[:, random.integers(0, tokens)] = 0
        x[..., :GROUP] *= random.integers(0, 2, (batch, tokens, 1))
    elif kind == "ties":  # quotients that end in .5 exactly, where the rounding of the quotient shows
        x = random.integers(-15, 16, x.shape) / 2.0
        x[..., ::GROUP] = -8
    elif kind == "equal":
        x = np.full_like(x, 3.0)
    codes, rest = layer(random, out, width, draw(st.integers(1, 33)))
    if kind == "ties":
        rest[2][:], rest[3][:] = 1, 0
    return draw(st.sampled_from([0, 1])), codes, [x.clip(-2000, 2000).astype(np.float16), *rest]


def exact(codes, arguments, rotate):
    """Codes, scales, integer sums and outputs in float64 and integers, with the rounding steps of the docstring."""
    x, _, scales, pre_scale, shift, down, up, bias = arguments
    values = (x.astype(np.float64) * pre_scale - shift).astype(np.float32)
    smooth = values
    if rotate:
        values = rotate_groups(torch.from_numpy(values)).numpy()
    groups = values.reshape(-1, scales.shape[1], GROUP)
    high, low = groups.max(-1, keepdims=True), groups.min(-1, keepdims=True)
    extreme = np.where(high > -low, high, low)
    step = (extreme / np.float32(-8)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(-8), extreme, out=np.zeros_like(extreme), where=extreme != 0)
    x_codes = np.clip(np.rint(groups * inverse), -8, 7).astype(np.int64)
    integers = np.einsum("mgi,ngi->gmn", x_codes, codes.reshape(len(codes), -1, GROUP).astype(np.int64))
    terms = integers * scales.T[:, None, :].astype(np.float64) * step.transpose(1, 0, 2).astype(np.float64)
    hidden = (smooth.astype(np.float16).astype(np.float64) @ down.T.astype(np.float64)).astype(np.float16)
    branch = hidden.astype(np.float64) @ up.T.astype(np.float64)
    output = terms.sum(0).reshape(*x.shape[:-1], -1) + branch + bias
    # What a float32 sum in any order, and another rounding of hidden or of the branch to float16, may differ by.
    slack = 1e-6 * np.abs(terms).sum(0).reshape(output.shape) + 2e-3 * np.abs(hidden) @ np.abs(up.T).astype(float)
    slack += 1e-3 * np.abs(output) + 1e-7
    # ONNX Runtime may sum hidden in float16, by processor and shape: what it sums may be large and cancel.
    summed = np.abs(smooth.astype(np.float64)) @ np.abs(down.T.astype(np.float64))
    loose = slack + 1e-4 * summed @ np.abs(up.T.astype(np.float64))
    return {"x_codes": x_codes, "scale": step, "integers": integers, "output": output, "slack": slack, "loose": loose}


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_body_torch_op_and_exact_arithmetic_agree(sessions, case):
    rotate, codes, arguments = case
    wanted = exact(codes, arguments, rotate)
    op = torch_op()(*map(torch.from_numpy, arguments), rotate).numpy()
    assert op.dtype == np.float16 and (np.abs(op - wanted["output"]) <= wanted["slack"]).all()
    for (turned, _), session in sessions.items():
        if turned != rotate:
            continue
        found = run(session, arguments)
        for name in ("x_codes", "scale", "integers"):
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        np.testing.assert_array_equal(found["w_codes"].reshape(codes.shape), codes)
        assert found["output"].dtype == np.float16
        assert (np.abs(found["output"] - wanted["output"]) <= wanted["loose"]).all()


def test_outputs_of_torch_and_the_body_differ_by_the_body_s_float16_branch_alone(sessions):
    random = np.random.default_rng(0)
    _, rest = layer(random, 96, 384, 32)
    x = random.normal(0, 1, (1, 64, 384)).astype(np.float16)
    without = [*rest[:5], np.zeros_like(rest[5]), rest[6]]
    for (rotate, _), session in sessions.items():
        for parameters, most_steps, least_equal in ((without, 1, 0.99), (rest, 3, 0.5)):
            op = torch_op()(*map(torch.from_numpy, [x, *parameters]), rotate).numpy()
            body = run(session, [x, *parameters])["output"]
            steps = np.abs(body.astype(np.float64) - op) / np.spacing(np.maximum(np.abs(op), np.float16(1)))
            assert steps.max() <= most_steps and (body == op).mean() > least_equal


@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_makes_its_token_nan_and_no_other(sessions, rotate, bad):
    random = np.random.default_rng(1)
    _, rest = layer(random, 10, 192, 4)
    x = random.normal(0, 1, (1, 3, 192)).astype(np.float16)
    clean = torch_op()(*map(torch.from_numpy, [x, *rest]), rotate).numpy()
    x[0, 1, 70] = bad
    found = [torch_op()(*map(torch.from_numpy, [x, *rest]), rotate).numpy()]
    found += [run(session, [x, *rest])["output"] for (turned, _), session in sessions.items() if turned == rotate]
    for output in found:
        assert np.isnan(output[0, 1]).all()
        np.testing.assert_allclose(output[0, [0, 2]], clean[0, [0, 2]], atol=4e-3)
    codes, scales = quantize_groups(torch.from_numpy(x).float())
    assert scales[0, 1].isnan().flatten().tolist() == [False, True, False] and not codes[0, 1, 1].any()


def test_the_rotation_is_the_normalised_hadamard_matrix_and_its_own_inverse():
    scipy_order = np.array([[(-1) ** bin(i & j).count("1") for j in range(GROUP)] for i in range(GROUP)]) / 8
    np.testing.assert_array_equal(rotate_groups(torch.eye(GROUP)).numpy(), scipy_order)
    x = torch.randn(5, 3 * GROUP)
    torch.testing.assert_close(rotate_groups(rotate_groups(x)), x, rtol=0, atol=1e-6)


def test_packed_codes_are_read_with_the_first_in_the_low_half():
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    packed = torch.frombuffer(bytearray(pack_int4(codes)), dtype=torch.int8).reshape(2, 4)
    np.testing.assert_array_equal(unpack_codes(packed).numpy(), codes)


def test_the_torch_op_passes_torch_s_own_checks_and_keeps_leading_dimensions():
    random = np.random.default_rng(2)
    _, rest = layer(random, 6, 128, 8)
    tensors = [torch.from_numpy(value) for value in rest]
    for shape in ((128,), (4, 128), (2, 3, 4, 128)):
        assert torch_op()(torch.ones(shape).half(), *tensors).shape == (*shape[:-1], 6)
    torch.library.opcheck(
        torch_op(), (torch.randn(2, 128).half(), *tensors, 1), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((2, 100), np.float16), "no whole groups"),
        (0, np.zeros((2, 128), np.float32), "x is torch.float32"),
        (1, np.zeros((6, 128), np.int8), r"codes is torch.int8\[6, 128\]"),
        (2, np.zeros((6, 1), np.float16), "scales"),
        (6, np.zeros((5, 8), np.float16), "low_rank_up"),
    ],
)
def test_the_torch_op_refuses_what_the_kernel_could_not_take(position, value, message):
    random = np.random.default_rng(3)
    arguments = [np.zeros((2, 128), np.float16), *layer(random, 6, 128, 8)[1]]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        torch_op()(*map(torch.from_numpy, arguments))


def test_the_kernel_s_words_for_the_group_are_those_of_the_body():
    assert f"[2, {GROUP // 2}]" in PLUGIN.body and f"[{GROUP}]" in PLUGIN.body
    assert f"value_float = {w4a4_linear.LOWEST}.0" in PLUGIN.body


@pytest.mark.parametrize("rotate", [0, 1])
def test_gelu_follows_the_unrounded_sum(rotate):
    random = np.random.default_rng(4)
    _, rest = layer(random, 40, 192, 8)
    rest[5:] = [np.zeros_like(rest[5]), rest[6]]  # the body rounds the branch once more
    x = random.normal(0, 1, (1, 9, 192)).astype(np.float16)
    text = f"""net ({LAYER_INPUTS}) => (float16[A,B,N] output) {{
        output = rtgen.W4A4Linear <rotate = {rotate}, epilogue = 1> ({", ".join(PLUGIN.inputs)}) }}"""
    (body,) = plain_session(text, PLUGIN).run(None, dict(zip(PLUGIN.inputs, [x, *rest], strict=True)))
    tensors = [torch.from_numpy(value) for value in (x, *rest)]
    op = torch_op()(*tensors, rotate, 1)
    exact = w4a4_linear.linear_sums(*tensors, rotate).double()
    wanted = exact / 2 * (1 + torch.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    np.testing.assert_allclose(op.double(), wanted, rtol=2**-10, atol=1e-6)
    np.testing.assert_allclose(body.astype(np.float64), wanted.numpy(), rtol=2**-9, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_gated_layer_adds_to_its_residual_frame_by_frame(frames):
    random = np.random.default_rng(5)
    _, rest = layer(random, 24, 128, 8)
    rest[5] = np.zeros_like(rest[5])
    x = random.normal(0, 1, (2, 6, 128)).astype(np.float16)
    gate = random.normal(0, 1, (2, frames, 24)).astype(np.float32)
    residual = random.normal(0, 1, (2, 6, 24)).astype(np.float32)
    text = f"""net ({LAYER_INPUTS}, float[A,F,N] gate, float[A,B,N] residual) => (float[A,B,N] output) {{
        output = rtgen.W4A4LinearGated <rotate = 1> ({", ".join(GATED.inputs)}) }}"""
    arguments = [x, *rest, gate, residual]
    (body,) = plain_session(text, GATED).run(None, dict(zip(GATED.inputs, arguments, strict=True)))
    tensors = [torch.from_numpy(value) for value in arguments]
    op = gated_torch_op()(*tensors, 1)
    y = w4a4_linear.linear_sums(*tensors[:8], 1).numpy()
    wanted = residual + y * np.repeat(gate, 6 // frames, axis=1)
    np.testing.assert_allclose(op.numpy(), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(body, wanted, rtol=1e-4, atol=1e-4)
    names = ("test_schema", "test_faketensor")
    torch.library.opcheck(gated_torch_op(), (*tensors, 1), test_utils=names)


def test_gates_and_residuals_of_other_shapes_are_refused():
    random = np.random.default_rng(6)
    tensors = [torch.zeros(2, 6, 128).half(), *map(torch.from_numpy, layer(random, 24, 128, 8)[1])]
    residual = torch.zeros(2, 6, 24)
    with pytest.raises(ValueError, match="share out"):
        gated_torch_op()(*tensors, torch.zeros(2, 4, 24), residual)
    with pytest.raises(ValueError, match="gate is"):
        gated_torch_op()(*tensors, torch.zeros(2, 3, 23), residual)
    with pytest.raises(ValueError, match=r"residual is torch\.float16"):
        gated_torch_op()(*tensors, torch.zeros(2, 3, 24), residual.half())
    with pytest.raises(ValueError, match="epilogue"):
        torch_op()(*tensors, 0, 2)
