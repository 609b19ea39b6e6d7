"""Small graphs of linear layers, their quantized layers, and what ONNX Runtime makes of them."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from safetensors.numpy import save_file

from rtgen.models.safetensors_index import read_index
from rtgen.quantize.graph import quantized_layers
from rtgen.quantize.result import QuantizationResult
from tests.quantize.handmade import quantized

KINDS = {np.dtype("float16"): "float16", np.dtype("float32"): "float"}


@dataclass
class LinearNet:
    """A graph whose inputs are ``inputs`` and whose linear layers are ``weights``."""

    model: ir.Model
    weights: dict[str, np.ndarray]

    def quantize(self, folder, passes, **choices):
        """Run ``passes``, classes that take layers, on layers made by hand; returns them by name.

        ``choices`` maps names to arguments of ``handmade.quantized`` after the weight.
        """
        made = {name: quantized(name, self.weights[name], **choice) for name, choice in choices.items()}
        tensors = {key: np.array(value) for layer in made.values() for key, value in layer.tensors.items()}
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "weights.safetensors")
        result = QuantizationResult(
            recipe="handmade", algorithm="none", layers=tuple(layer.result for layer in made.values())
        )
        self.layers = quantized_layers(self.model.graph, read_index(folder / "weights.safetensors", codes=True), result)
        self.passes = [make(self.layers) for make in passes]
        for each in self.passes:
            assert each(self.model).modified == bool(self.layers)
        self.folder = folder
        ir.save(self.model, folder / "net.onnx")
        return made

    def run(self, **inputs):
        """The outputs, by ONNX Runtime with every optimization off."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(self.folder / "net.onnx", options, providers=["CPUExecutionProvider"])
        return session.run(None, inputs)

    def count(self, op):
        return sum(node.op_type == op for node in self.model.graph)


def linear_net(inputs, outputs, body, dtype="float16", stored=None, **shapes):
    """A net of ``body`` in ONNX's text form, where ``linear(x, w)`` stands for Transpose and MatMul.

    ``inputs`` and ``outputs`` are as in that text, with ``T`` for the element type. ``shapes`` are those of the
    weights, random numbers of type ``stored``, which is ``dtype`` unless said otherwise.
    """
    dtype, stored = np.dtype(dtype), np.dtype(stored or dtype)
    generator = np.random.default_rng(0)
    weights = {name: (generator.standard_normal(shape) * 0.1).astype(stored) for name, shape in shapes.items()}
    lines = [
        f"{name}_cast = Cast<to = {10 if dtype == np.float16 else 1}>({name})" for name in weights if stored != dtype
    ]
    for number, line in enumerate(body):
        head, _, call = line.partition("linear(")
        if call:
            source, _, weight = call.rstrip(")").partition(", ")
            suffix = "_cast" if stored != dtype else ""
            lines.append(f"t{number} = Transpose<perm = [1, 0]>({weight}{suffix})")
            line = f"{head}MatMul({source}, t{number})"
        lines.append(line)
    kind = KINDS[dtype]
    text = f"net ({inputs}) => ({outputs}) {{ {' '.join(lines)} }}".replace("T[", f"{kind}[")
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    proto = onnx.shape_inference.infer_shapes(proto)
    return LinearNet(ir.from_proto(proto), weights)


def close(found, expected, dtype="float16"):
    """Equal up to rounding in ``dtype`` a few times over."""
    limit = 4 * np.finfo(dtype).eps * np.abs(expected).max()
    assert found.shape == expected.shape and np.abs(found.astype(np.float64) - expected).max() <= limit
