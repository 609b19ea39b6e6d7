"""What clips show, read by a classifier that a model brings along; files come from strangers."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto

from rtgen.config.model import EvaluationConfig
from rtgen.errors import CheckpointError
from rtgen.fidelity.attributes import Classifier, EvaluationSet, read_evaluation
from rtgen.fidelity.perceptual import NotMeasuredError
from tests.fidelity.small_classifier import EVALUATION, FRAMES, ramp, write_classifier


@pytest.fixture
def evaluation():
    return EvaluationSet.model_validate(EVALUATION)


@pytest.fixture
def config(tiny_models):
    named = EvaluationConfig(classifier="classifier.onnx", prompts="evaluation.json")
    return tiny_models["tiny"].config.model_copy(update={"evaluation": named})


def test_a_clip_is_read_from_its_last_frames(tmp_path, evaluation):
    classifier = Classifier(write_classifier(tmp_path / "classifier.onnx"), evaluation)
    assert classifier.frames == FRAMES
    assert classifier.read(ramp(200, 50)).tolist() == [1, 0]
    late = np.concatenate([ramp(200, 50), ramp(20, 60)])
    assert classifier.read(late).tolist() == [0, 1]


def test_right_answers_are_positions_of_values(evaluation):
    assert evaluation.truth(evaluation.prompts).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_short_clip_is_refused(tmp_path, evaluation):
    classifier = Classifier(write_classifier(tmp_path / "classifier.onnx"), evaluation)
    with pytest.raises(ValueError, match="reads 6 frames, the clip has 5"):
        classifier.read(ramp(0, 9)[:5])


def test_an_absent_classifier_is_no_error_but_a_reason(tmp_path, evaluation):
    with pytest.raises(NotMeasuredError, match=r"classifier\.onnx is not in the folder of the weights"):
        Classifier(tmp_path / "classifier.onnx", evaluation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_type": TensorProto.INT32}, "does not answer for the 2 attributes"),
        ({"offset": 1}, "an answer that no value stands for"),
        ({"frames": "F"}, "does not take clips"),
    ],
)
def test_a_classifier_of_another_kind_is_refused(tmp_path, evaluation, changes, message):
    path = tmp_path / "classifier.onnx"
    if changes.get("frames") == "F":
        write_classifier(path)
        import onnx

        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "F"
        onnx.save(model, path)
    else:
        write_classifier(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        Classifier(path, evaluation).read(ramp(200, 210))


def test_a_file_that_is_no_graph_is_refused(tmp_path, evaluation):
    path = tmp_path / "classifier.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match="cannot load"):
        Classifier(path, evaluation)


def test_prompts_come_from_the_folder_of_the_weights(tmp_path, config):
    with pytest.raises(NotMeasuredError, match=r"evaluation\.json is not in the folder"):
        read_evaluation(config, tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    assert len(read_evaluation(config, tmp_path).prompts) == 3
    with pytest.raises(NotMeasuredError, match=r"no \[evaluation\] section"):
        read_evaluation(config.model_copy(update={"evaluation": None}), tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content["prompts"][1]["values"].pop("light"), "prompt 1 has not the attributes"),
        (lambda content: content["prompts"][0]["values"].update(light="loud"), "'loud' is no light"),
        (lambda content: content.update(prompts=[]), "prompts"),
        (lambda content: content.update(more=1), "more"),
    ],
)
def test_prompts_that_do_not_add_up_are_refused(tmp_path, config, damage, message):
    content = json.loads(json.dumps(EVALUATION))
    damage(content)
    (tmp_path / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_evaluation(config, tmp_path)
