import numpy as np
import pytest

from rtgen.engine.package import Package
from rtgen.errors import PackageInvalidError, SizeError
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend

onnx = pytest.importorskip("onnx")


def save_counter(folder, weight=3.0):
    """ring' = ring + 1, in place; cache' = cache + 1 / 2; y = weight * x + ring'."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    constants = {"weight": np.full((1, 1), weight), "one": np.ones(1), "half": np.full(1, 0.5)}
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "weight"], ["scaled"]),
            helper.make_node("Add", ["ring", "one"], ["ring_next"]),
            helper.make_node("Add", ["scaled", "ring_next"], ["y"]),
            helper.make_node("Add", ["cache", "half"], ["cache_next"]),
        ],
        "counter",
        [value("x", [1, "n"]), value("ring", [1, "n"]), value("cache", [2])],
        [value("y", [1, "n"]), value("ring_next", [1, "n"]), value("cache_next", [2])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(
        model, folder / "denoiser.onnx", save_as_external_data=True, location="denoiser.data", size_threshold=0
    )


@pytest.fixture
def session(tmp_path, make_manifest):
    save_counter(tmp_path)
    backend = OnnxRuntimeBackend(Package(tmp_path, make_manifest()), threads=1)
    yield backend.open("denoiser")
    backend.close()


def sizes(rows, columns):
    return {"rows": rows, "columns": columns}


def test_states_advance_with_every_run_whatever_their_update(session):
    session.allocate(sizes(2, 4))
    session.write("x", np.ones((1, 8), np.float32))
    seen = []
    for _ in range(3):
        session.run()
        seen.append((session.read("y")[0, 0], session.read("ring_next")[0, 0], session.read("cache")[0]))
    assert seen == [(4.0, 1.0, 0.5), (5.0, 2.0, 1.0), (6.0, 3.0, 1.5)]
    session.reset()
    session.run()
    assert session.read("y")[0, 0] == 4.0


def test_what_was_read_does_not_change_later(session):
    session.allocate(sizes(2, 2))
    session.run()
    first = session.read("ring_next")
    session.run()
    assert first[0, 0] == 1.0


def test_other_sizes_replace_the_buffers_and_clear_the_states(session):
    session.allocate(sizes(2, 4))
    session.run()
    session.allocate(sizes(4, 4))
    session.write("x", np.ones((1, 16), np.float32))
    session.run()
    assert session.read("y").tolist() == [[4.0] * 16]


def test_copies_stay_on_the_device_and_check_shapes(session, tmp_path, make_manifest):
    other = OnnxRuntimeBackend(Package(tmp_path, make_manifest()), threads=1).open("denoiser")
    session.allocate(sizes(2, 4))
    other.allocate(sizes(2, 4))
    session.run()
    other.copy("x", session, "ring_next")
    other.run()
    assert other.read("y")[0, 0] == 4.0
    session.copy("ring", session, "y")
    assert session.read("ring")[0, 0] == 1.0
    with pytest.raises(ValueError, match="cache"):
        other.copy("cache", session, "y")


@pytest.mark.parametrize("value", [np.ones((8,), np.float32), np.ones((1, 8)), np.ones((1, 9), np.float32)])
def test_a_misfit_array_is_refused(session, value):
    session.allocate(sizes(2, 4))
    with pytest.raises(ValueError, match="'x' takes float32"):
        session.write("x", value)


def test_sizes_outside_the_profiles_are_refused(session):
    with pytest.raises(SizeError, match="16x64") as caught:
        session.allocate(sizes(1, 4))
    assert "32x32 to 128x128" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_broken_file_is_refused_with_its_name(tmp_path, make_manifest, content):
    (tmp_path / "denoiser.onnx").write_bytes(content)
    backend = OnnxRuntimeBackend(Package(tmp_path, make_manifest()))
    with pytest.raises(PackageInvalidError, match=r"cannot load denoiser\.onnx"):
        backend.open("denoiser")


def test_closing_twice_is_harmless_and_using_a_closed_session_is_not(session):
    session.allocate(sizes(2, 2))
    session.close()
    session.close()
    with pytest.raises(ValueError, match="allocate"):
        session.run()
