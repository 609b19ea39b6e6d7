"""A ring of the length that the greatest size needs, as in TensorRT: smaller frames fill a prefix, with equal frames.

ONNX Runtime runs such graphs too, so that the whole path is walked here but for the compiler.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build.plan import BuildPlan  # noqa: E402
from rtgen.build.walk import build  # noqa: E402
from rtgen.engine.manifest import resolve_shape  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeSession  # noqa: E402
from rtgen.runtime.kv_cache import RingLayout  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
SIZES = ((32, 32), (48, 80), (80, 48))
CHUNKS = 6
"""Window 9 holds three: the ring wraps, and the sink of 3 frames stays."""


@pytest.fixture(scope="module")
def built(tiny_models, tiny_built):
    """Packages of three sizes and what lies between: with a ring that follows the frame size, and with a fixed one."""
    tiny_built("tiny")  # and so the export, which does not depend on sizes
    tiny = tiny_models["tiny"]
    request = tiny.request(sizes=SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        exact = build(request, SilentProgress())
        patch.setattr(BuildPlan, "fixed_ring", property(lambda plan: plan.ring_at(plan.largest)))
        return {"exact": exact, "fixed": build(request, SilentProgress())}


def ring_shapes(outcome, sizes):
    component = outcome.manifest.components["denoiser"]
    names = {state.input for state in component.states}
    return {resolve_shape(tensor.shape, sizes) for tensor in component.inputs if tensor.name in names}


def play(pipeline, size):
    """A stream past the window, with a change of prompt, which fills the ring again."""
    stream = pipeline.stream(PROMPT, seed=6, size=size)
    frames = [next(stream) for _ in range(CHUNKS - 2)]
    pipeline.prompt = OTHER
    return np.stack([*frames, next(stream), next(stream)]).astype(int)


def test_the_fixed_ring_is_that_of_the_greatest_size_and_only_it_changes_the_key(built):
    tokens = 9 * 3 * 5
    assert ring_shapes(built["fixed"], {}) == {(1, 2, tokens, 32)}
    assert ring_shapes(built["exact"], {"rows": 2, "columns": 2}) == {(1, 2, 9 * 2 * 2, 32)}
    assert built["fixed"].key != built["exact"].key
    assert built["fixed"].manifest.profiles == built["exact"].manifest.profiles
    assert built["fixed"].manifest.memory_plan == built["exact"].manifest.memory_plan


@pytest.mark.parametrize("size", [*SIZES, (32, 64)], ids=str)
def test_smaller_frames_use_a_prefix_and_come_out_the_same(built, size):
    found = {}
    for name, outcome in built.items():
        with Pipeline.open(outcome.package) as pipeline:
            found[name] = play(pipeline, size)
    assert found["exact"].std() > 20
    # Sums over a longer row may be added up in another order: the last bit grows from chunk to chunk.
    assert np.abs(found["fixed"] - found["exact"]).mean() < 0.1


def test_what_larger_frames_left_behind_the_prefix_is_never_seen(built):
    with Pipeline.open(built["fixed"].package) as pipeline:
        before = play(pipeline, (32, 48))
        play(pipeline, (80, 48))
        assert np.array_equal(play(pipeline, (32, 48)), before)


def test_stale_keys_behind_the_valid_length_change_nothing(built, monkeypatch):
    """As on a device whose memory held something else: not even a reset is needed."""
    with Pipeline.open(built["fixed"].package) as pipeline:
        clean = play(pipeline, (32, 48))
        reset = OnnxRuntimeSession.reset

        def poison(session):
            reset(session)
            for tensor in session.component.inputs:
                if "cache" in tensor.name:
                    session.write(tensor.name, np.full(tensor.shape, 7.5, tensor.dtype))

        monkeypatch.setattr(OnnxRuntimeSession, "reset", poison)
        assert np.array_equal(play(pipeline, (32, 48)), clean)


@pytest.mark.parametrize(("window", "sink"), [(9, 3), (12, 3), (21, 0)])
def test_every_write_of_a_smaller_frame_lies_in_the_prefix(window, sink):
    ring, chunk = RingLayout(window, sink, 3), 3
    small, large = 4, 15  # tokens a frame
    ends = [(ring.slot(index) + chunk) * small for index in range(40)]
    assert max(ends) == window * small <= window * large
    assert all(end <= ring.length(index) * small for index, end in enumerate(ends))
