"""KVCacheAttention: its function body in ONNX Runtime, its torch op and numpy agree, and stale keys never show."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.plugins.kv_cache_attention import PLUGIN, torch_op  # noqa: E402
from rtgen.plugins.registry import PLUGINS  # noqa: E402

HUGE = {np.float32: 1e30, np.float16: 6e4}
TOLERANCE = {np.float32: 1e-5, np.float16: 4e-3}


def session_of(kind):
    """ONNX Runtime on a model with one node, which has nothing but the function body to run it by."""
    chunk, ring = f"{kind}[1,heads,T,D]", f"{kind}[1,heads,S,D]"
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]>
        net ({chunk} query, {chunk} key, {chunk} value, {ring} key_cache, {ring} value_cache,
             int64[1] write_index, int64[1] valid_length)
            => ({chunk} output, {ring} key_cache_out, {ring} value_cache_out) {{
            output, key_cache_out, value_cache_out = rtgen.KVCacheAttention(
                query, key, value, key_cache, value_cache, write_index, valid_length)
        }}"""
    )
    model.functions.append(PLUGIN.function())
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sessions():
    return {np.float32: session_of("float"), np.float16: session_of("float16")}


def reference(query, key, value, key_cache, value_cache, write_index, valid_length):
    start, stop = write_index[0], write_index[0] + key.shape[2]
    keys, values = key_cache.copy(), value_cache.copy()
    keys[:, :, start:stop], values[:, :, start:stop] = key, value
    seen, values_seen = (cache[:, :, : valid_length[0]].astype(np.float64) for cache in (keys, values))
    scores = query.astype(np.float64) @ seen.transpose(0, 1, 3, 2) / np.sqrt(query.shape[3])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ values_seen, keys, values


@st.composite
def cases(draw):
    kind = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    heads, dim, chunk = draw(st.integers(1, 3)), draw(st.sampled_from([2, 8, 24])), draw(st.integers(1, 7))
    slots = draw(st.integers(1, 4))
    written = draw(st.integers(0, slots - 1))
    valid = draw(st.integers(written + 1, slots))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def noise(tokens):
        return random.standard_normal((1, heads, tokens, dim)).astype(kind)

    query, key, value = (noise(chunk) for _ in range(3))
    caches = [noise(slots * chunk) for _ in range(2)]
    for cache in caches:
        cache[:, :, valid * chunk :] *= kind(HUGE[kind] / 5)  # what an earlier stream might have left there
        np.clip(cache, -HUGE[kind], HUGE[kind], out=cache)
    return query, key, value, *caches, np.array([written * chunk]), np.array([valid * chunk])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=cases())
def test_body_torch_op_and_numpy_agree(sessions, arguments):
    kind = arguments[0].dtype.type
    expected = reference(*arguments)
    body = sessions[kind].run(None, dict(zip(PLUGIN.inputs, arguments, strict=True)))
    op = [found.numpy() for found in torch_op()(*map(torch.from_numpy, arguments))]
    for found in (body, op):
        np.testing.assert_allclose(found[0].astype(np.float64), expected[0], atol=TOLERANCE[kind])
        assert found[0].dtype == kind
        for cache, wanted in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(cache, wanted)


@pytest.mark.parametrize(("write", "valid"), [(6, 8), (7, 8), (0, 1), (4, 5), (2**40, 2**40 + 2)])
def test_the_torch_op_refuses_a_chunk_that_does_not_fit(write, valid):
    chunk, ring = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 8, 4)
    with pytest.raises(ValueError, match="does not fit"):
        torch_op()(chunk, chunk, chunk, ring, ring, torch.tensor([write]), torch.tensor([valid]))


def test_the_torch_op_leaves_its_inputs_alone_and_passes_torch_s_own_checks():
    chunk, ring = torch.randn(3, 1, 2, 3, 4), torch.randn(2, 1, 2, 9, 4)
    before = ring.clone()
    arguments = (*chunk, *ring, torch.tensor([3]), torch.tensor([6]))
    torch_op()(*arguments)
    assert torch.equal(ring, before)
    torch.library.opcheck(torch_op(), arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_plugin_declares_what_its_body_takes():
    for name, plugin in PLUGINS.items():
        function, schema = plugin.function(), plugin.schema()
        assert (function.name, function.domain) == (name, "rtgen") == (schema.name, schema.domain)
        assert tuple(function.input) == plugin.inputs == tuple(entry.name for entry in schema.inputs)
        assert tuple(function.output) == plugin.outputs == tuple(entry.name for entry in schema.outputs)
