"""Write the attribute classifier as an ONNX file, which the fidelity report reads clips with.

    python -m scripts.postcard.export_classifier

The file takes clips as they are, uint8 [B, 80, 3, H, W] of any size, and returns class indices int64 [B, 7] in the
order of the grammar: choosing frames, making them smaller and averaging answers are part of it. Weights are float16, as
they were saved, and are computed with in float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from rtgen.config.locate import bundled_directory
from scripts.postcard.classifier import (
    CLIP_FRAMES,
    GAP,
    JITTERS,
    PAIRS,
    PIXELS,
    Classifier,
    load_classifier,
    pair_starts,
)
from scripts.postcard.training import KEPT

FILE = "classifier.onnx"
OPSET = 20
_LEAST_HALVED = 64
"""Elements; smaller constants stay as they are."""


class ClipReader(nn.Module):
    """:meth:`scripts.postcard.classifier.Classifier.read`, in operators that ONNX has."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        first = torch.stack([pair_starts(jitter) for jitter in JITTERS])
        self.register_buffer("frames", torch.stack([first, first + GAP], dim=2).flatten())

    def forward(self, video: Tensor) -> Tensor:
        """uint8 [B, CLIP_FRAMES, 3, H, W] to int64 [B, 7]."""
        answers = self.classifier(self._pairs(video))
        chances = [logits.softmax(1).reshape(-1, len(JITTERS), logits.shape[1]).sum(1) for logits in answers]
        return torch.stack([chance.argmax(1) for chance in chances], dim=1)

    def _pairs(self, video: Tensor) -> Tensor:
        """Pairs of frames [B * jitters, PAIRS, 2, 3, PIXELS, PIXELS] float32 in 0..1."""
        frames: Tensor = self.frames  # type: ignore[assignment]
        chosen = video.index_select(1, frames).float() / 255
        rows, columns = area_means(video.shape[3]), area_means(video.shape[4])
        small = rows @ chosen @ columns.T
        return small.reshape(-1, PAIRS, 2, 3, PIXELS, PIXELS)


def area_means(size: int) -> Tensor:
    """The matrix [PIXELS, size] that makes ``size`` pixels PIXELS by means, as torch's area interpolation does."""
    cells, pixels = torch.arange(PIXELS)[:, None], torch.arange(size)[None]
    begin, end = cells * size // PIXELS, ((cells + 1) * size + PIXELS - 1) // PIXELS
    inside = ((pixels >= begin) & (pixels < end)).float()
    return inside / inside.sum(1, keepdim=True)


def export(classifier: Classifier) -> ir.Model:
    """The graph of a classifier in evaluation mode, float32."""
    example = torch.zeros(2, CLIP_FRAMES, 3, PIXELS + 16, PIXELS + 32, dtype=torch.uint8)
    sizes = {0: torch.export.Dim("clips"), 3: torch.export.Dim("height"), 4: torch.export.Dim("width")}
    program = torch.onnx.export(
        ClipReader(classifier).eval(),
        (),
        kwargs={"video": example},
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes={"video": sizes},
        input_names=["video"],
        output_names=["answers"],
        verbose=False,
        report=False,
    )
    assert program is not None
    model = program.model
    halve_weights(model)
    return model


def halve_weights(model: ir.Model) -> None:
    """Store float32 weights as float16, with a Cast behind each; ONNX Runtime undoes it when it loads the graph."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST_HALVED:
            continue
        half = ir.tensor(tensor.numpy().astype("float16"), name=f"{name}.half")
        stored = ir.Value(name=half.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=half)
        graph.register_initializer(stored)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        cast.outputs[0].name, cast.outputs[0].shape = f"{name}.single", value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        graph.insert_before(graph[0], cast)
        del graph.initializers[name]


def write(model: ir.Model, path: Path) -> None:
    """Save a graph without what the exporter notes about the place it ran in."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    temporary = path.with_name(f"{path.name}.partial")
    ir.save(model, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", type=Path, default=KEPT, help="folder that scripts.postcard.classifier wrote")
    parser.add_argument("--out", type=Path, default=bundled_directory("postcard") / FILE)
    arguments = parser.parse_args()
    write(export(load_classifier(arguments.classifier, torch.device("cpu"))), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
