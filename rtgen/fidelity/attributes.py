"""Does a clip show what its prompt asks for? Prompts with the right answers, and a classifier that reads clips.

A model's ``[evaluation]`` section names both files; they lie beside its weights, and may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from rtgen.config.base import Section
from rtgen.errors import CheckpointError
from rtgen.fidelity.perceptual import NotMeasuredError

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.fidelity.metrics import Frames

MAXIMUM_BYTES: Final = 4 << 20
"""Of the file of prompts."""
MAXIMUM_CLASSIFIER_BYTES: Final = 256 << 20

Answers = NDArray[np.int64]
"""Class indices, [clips, attributes]."""


class EvaluationPrompt(Section):
    """A prompt, and the value that a clip should show of each attribute."""

    prompt: str = Field(min_length=1)
    values: dict[str, str]


class EvaluationSet(Section):
    """Prompts that the model was never trained on, and what can be asked about a clip."""

    attributes: dict[str, tuple[str, ...]] = Field(min_length=1)
    """The values of each attribute; the classifier answers with their positions."""
    prompts: tuple[EvaluationPrompt, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _values_of_the_attributes(self) -> Self:
        for number, prompt in enumerate(self.prompts):
            if prompt.values.keys() != self.attributes.keys():
                raise ValueError(f"prompt {number} has not the attributes {', '.join(self.attributes)}")
            for name, value in prompt.values.items():
                if value not in self.attributes[name]:
                    raise ValueError(f"prompt {number}: '{value}' is no {name}")
        return self

    def truth(self, prompts: Sequence[EvaluationPrompt]) -> Answers:
        """The right answers for some of the prompts."""
        rows = [[values.index(prompt.values[name]) for name, values in self.attributes.items()] for prompt in prompts]
        return np.array(rows, np.int64)


def read_evaluation(config: ModelConfig, weights: Path) -> EvaluationSet:
    """A model's evaluation prompts.

    Raises NotMeasuredError where the model has none, CheckpointError for a file that is not what it should be.
    """
    if config.evaluation is None:
        raise NotMeasuredError(f"the config of {config.name} has no [evaluation] section")
    path = weights / config.evaluation.prompts
    if not path.is_file():
        raise NotMeasuredError(f"{path.name} is not in the folder of the weights")
    if path.stat().st_size > MAXIMUM_BYTES:
        raise CheckpointError(f"{path} is larger than {MAXIMUM_BYTES >> 20} MiB")
    try:
        return EvaluationSet.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} holds no evaluation prompts: {where}: {first['msg']}") from error


class Classifier:
    """An ONNX file that takes clips uint8 [B, F, 3, H, W] and returns class indices int64 [B, attributes]."""

    def __init__(self, path: Path, evaluation: EvaluationSet) -> None:
        """Raises NotMeasuredError where the file is absent, CheckpointError for one that is no such classifier."""
        if not path.is_file():
            raise NotMeasuredError(f"the classifier {path.name} is not in the folder of the weights")
        if path.stat().st_size > MAXIMUM_CLASSIFIER_BYTES:
            raise CheckpointError(f"{path} is larger than {MAXIMUM_CLASSIFIER_BYTES >> 20} MiB")
        self._path, self._evaluation = path, evaluation
        self._session = _load(path)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 5 or inputs[0].type != "tensor(uint8)" or not isinstance(shape[1], int) or shape[1] < 1:
            raise CheckpointError(f"{path} does not take clips uint8 [B, frames, 3, H, W]")
        self._input = inputs[0].name
        self.frames: int = shape[1]
        """Of a clip that it reads."""

    def read(self, clip: Frames) -> Answers:
        """What the last ``frames`` frames of a clip [F, H, W, 3] show, [attributes].

        Raises CheckpointError for an answer that is none, ValueError for a clip that is too short.
        """
        if len(clip) < self.frames:
            raise ValueError(f"the classifier reads {self.frames} frames, the clip has {len(clip)}")
        batch = np.ascontiguousarray(clip[-self.frames :].transpose(0, 3, 1, 2))[None]
        try:
            answers = np.asarray(self._session.run(None, {self._input: batch})[0])
        except Exception as error:  # every failure of the library is its own class, derived from Exception
            raise CheckpointError(f"{self._path.name} failed: {_first_line(error)}") from error
        sizes = [len(values) for values in self._evaluation.attributes.values()]
        if answers.shape != (1, len(sizes)) or answers.dtype != np.int64:
            raise CheckpointError(f"{self._path.name} does not answer for the {len(sizes)} attributes of the prompts")
        if not ((answers[0] >= 0) & (answers[0] < sizes)).all():
            raise CheckpointError(f"{self._path.name} gives an answer that no value stands for")
        found: Answers = answers[0]
        return found


def _load(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors come as exceptions
    options.intra_op_num_threads = 1  # the others are making clips meanwhile
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise CheckpointError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
