"""A classifier of two attributes that can be told in advance: brightness at the start, and whether it grows."""

import numpy as np
import onnx
from onnx import TensorProto, helper

FRAMES = 6
EVALUATION = {
    "attributes": {"light": ["dark", "bright"], "change": ["falls", "grows"]},
    "prompts": [
        {"prompt": "a bright clip that falls", "values": {"light": "bright", "change": "falls"}},
        {"prompt": "a dark clip that grows", "values": {"light": "dark", "change": "grows"}},
        {"prompt": "a dark clip that falls", "values": {"light": "dark", "change": "falls"}},
    ],
}


def write_classifier(path, *, frames=FRAMES, threshold=100.0, answer_type=TensorProto.INT64, offset=0):
    """``offset`` is added to the answers, ``answer_type`` is theirs."""
    constants = {
        "first": np.array([0], np.int64),
        "last": np.array([frames - 1], np.int64),
        "axes": np.array([1, 2, 3, 4], np.int64),
        "column": np.array([1], np.int64),
        "threshold": np.array(threshold, np.float32),
        "offset": np.array(offset, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["clips"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["levels", "first"], ["opening"], axis=1),
        helper.make_node("Gather", ["levels", "last"], ["ending"], axis=1),
        helper.make_node("ReduceMean", ["opening", "axes"], ["before"], keepdims=0),
        helper.make_node("ReduceMean", ["ending", "axes"], ["after"], keepdims=0),
        helper.make_node("Greater", ["before", "threshold"], ["bright"]),
        helper.make_node("Greater", ["after", "before"], ["grows"]),
        helper.make_node("Cast", ["bright"], ["light"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["grows"], ["change"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["light", "column"], ["light_column"]),
        helper.make_node("Unsqueeze", ["change", "column"], ["change_column"]),
        helper.make_node("Concat", ["light_column", "change_column"], ["both"], axis=1),
        helper.make_node("Add", ["both", "offset"], ["moved"]),
        helper.make_node("Cast", ["moved"], ["answers"], to=answer_type),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("clips", TensorProto.UINT8, ["B", frames, 3, "H", "W"])],
        [helper.make_tensor_value_info("answers", answer_type, ["B", 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def ramp(start, end, frames=FRAMES):
    """A clip [F, H, W, 3] whose brightness goes from one level to another."""
    levels = np.linspace(start, end, frames).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, 12, 12, 3)).copy()
