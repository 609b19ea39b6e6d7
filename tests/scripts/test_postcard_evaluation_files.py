"""What the fidelity report needs of the bundled model: prompts with answers, and the classifier as a graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F

from rtgen.config.load import load_model
from rtgen.config.locate import bundled_directory
from rtgen.fidelity.attributes import Classifier as GraphClassifier
from rtgen.fidelity.attributes import EvaluationSet, read_evaluation
from scripts.postcard.classifier import CLIP_FRAMES, PIXELS, Classifier
from scripts.postcard.evaluation_prompts import evaluation
from scripts.postcard.export_classifier import ClipReader, area_means, export, halve_weights, write
from scripts.postcard.grammar import ATTRIBUTES, Scene, canonical_caption, is_held_out


def small_classifier() -> Classifier:
    """Random weights that float16 has, none of them zero."""
    torch.manual_seed(3)
    model = Classifier(width=8, gazes=2, dim=16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight + 0.1 * torch.randn_like(weight)).half())
    return model.eval().requires_grad_(False)


def clips(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(count, CLIP_FRAMES // 8, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse.transpose(1, 2), (CLIP_FRAMES, height, width), mode="trilinear").transpose(1, 2)
    return (255 * smooth).to(torch.uint8)


def test_prompts_are_held_out_scenes_with_their_values() -> None:
    found = EvaluationSet.model_validate(evaluation(20, seed=0))
    scenes = [Scene(**prompt.values) for prompt in found.prompts]
    assert len(set(scenes)) == 20 and all(map(is_held_out, scenes))
    assert [prompt.prompt for prompt in found.prompts] == [canonical_caption(scene) for scene in scenes]
    assert found.truth(found.prompts).tolist() == [list(scene.indices()) for scene in scenes]


def test_the_shipped_prompts_are_those_that_the_script_writes() -> None:
    folder = bundled_directory("postcard")
    config = load_model("postcard")
    assert config.evaluation is not None
    assert read_evaluation(config, folder) == EvaluationSet.model_validate(evaluation(200, seed=0))
    stored = json.loads((folder / config.evaluation.prompts).read_text(encoding="utf-8"))
    assert stored["attributes"] == {name: list(values) for name, values in ATTRIBUTES.items()}


@pytest.mark.parametrize("size", [PIXELS, 2 * PIXELS, 96, 144, 200])
def test_area_means_are_those_of_torch(size: int) -> None:
    picture = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(size))
    wanted = F.interpolate(picture, (PIXELS, PIXELS), mode="area")
    matrix = area_means(size)
    assert torch.allclose(matrix @ picture @ matrix.T, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(PIXELS, PIXELS), (96, 160)])
def test_the_graphs_reader_is_the_classifiers(size: tuple[int, int]) -> None:
    model, video = small_classifier(), clips(*size)
    assert torch.equal(ClipReader(model)(video), model.read(video))


def test_weights_are_halved_and_small_constants_are_not() -> None:
    numbers = np.linspace(-2, 2, 100, dtype=np.float32)
    x = ir.Value(name="x", shape=ir.Shape((100,)), type=ir.TensorType(ir.DataType.FLOAT))
    weight, scale = (
        ir.Value(name=name, const_value=ir.tensor(value, name=name), shape=ir.Shape(value.shape))
        for name, value in (("weight", numbers), ("scale", np.ones(1, np.float32)))
    )
    scaled = ir.node("Mul", [x, weight])
    result = ir.node("Mul", [scaled.outputs[0], scale])
    graph = ir.Graph(
        [x], result.outputs, nodes=[scaled, result], initializers=[weight, scale], opset_imports={"": 20}, name="g"
    )
    halve_weights(ir.Model(graph, ir_version=10))
    stored = {name: value.const_value for name, value in graph.initializers.items()}
    assert set(stored) == {"weight.half", "scale"}
    assert stored["weight.half"].dtype == ir.DataType.FLOAT16
    assert [node.op_type for node in graph] == ["Cast", "Mul", "Mul"]
    assert scaled.inputs[1] is graph[0].outputs[0]


@pytest.mark.slow  # the exporter takes half a minute
def test_the_exported_classifier_answers_as_the_trained_one(tmp_path: Path) -> None:
    model, path = small_classifier(), tmp_path / "classifier.onnx"
    write(export(model), path)
    assert str(tmp_path) not in path.read_bytes().decode("latin-1")
    reader = GraphClassifier(path, EvaluationSet.model_validate(evaluation(2, seed=0)))
    assert reader.frames == CLIP_FRAMES
    for size in ((PIXELS, PIXELS), (96, 160)):
        video = clips(*size)
        wanted = model.read(video).tolist()
        assert [reader.read(clip.permute(0, 2, 3, 1).numpy()).tolist() for clip in video] == wanted
