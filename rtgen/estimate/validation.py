"""The estimate beside figures that others arrived at: ``configs/estimate/published.toml``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from rtgen.config.base import Section
from rtgen.config.model import Decoder
from rtgen.estimate.efficiencies import Efficiencies, load_estimate_file
from rtgen.estimate.prediction import Prediction, predict
from rtgen.estimate.setting import setting

Quantity = Literal["denoise_fps", "fps", "pass_ms", "attention_ms", "memory_gb", "weights_and_ring_gb"]
Role = Literal["fitted", "check", "other"]


class Figure(Section):
    """A figure and the setting that it belongs to; what is not given is the model's own, and FP16."""

    title: str
    gpu: str
    model: str
    recipe: str = "fp16"
    kv_bits: Literal[16, 8, 4] | None = None
    keep: float | None = Field(default=None, gt=0, le=1)
    """Share of the frames that soft prune leaves whole."""
    window: int | None = None
    decoder: Decoder | None = None
    eager: bool = False
    quantity: Quantity
    value: float = Field(gt=0)
    role: Role
    source: str


class Figures(Section):
    """The whole file."""

    figure: tuple[Figure, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Comparison:
    """A figure and what the estimate says in its place."""

    figure: Figure
    estimate: float

    @property
    def deviation(self) -> float:
        """Of the estimate, relative to the figure."""
        return self.estimate / self.figure.value - 1


def validate(efficiencies: Efficiencies) -> list[Comparison]:
    """Every figure of the file. Raises ConfigError or UsageError when the file asks for what cannot be."""
    return [_compare(figure, efficiencies) for figure in load_estimate_file("published.toml", Figures).figure]


def _compare(figure: Figure, efficiencies: Efficiencies) -> Comparison:
    checked = setting(
        figure.gpu,
        figure.model,
        recipe=figure.recipe,
        kv_bits=figure.kv_bits,
        window=figure.window,
        decoder=figure.decoder,
    )
    cache = checked.model.cache.model_copy(update={"keep": figure.keep or checked.model.cache.keep})
    model = checked.model.model_copy(update={"cache": cache})
    prediction = predict(replace(checked, model=model, eager=figure.eager), efficiencies)
    return Comparison(figure, _QUANTITIES[figure.quantity](prediction))


def _attention_ms(prediction: Prediction) -> float:
    """Self-attention of one layer in one pass."""
    seconds = sum(cost.seconds for cost in prediction.parts if cost.part == "self_attention")
    setting = prediction.setting
    return 1e3 * seconds / (setting.steps + 1) / setting.model.denoiser.layers


_QUANTITIES: Mapping[Quantity, Callable[[Prediction], float]] = {
    "denoise_fps": lambda prediction: prediction.denoise_fps,
    "fps": lambda prediction: prediction.fps,
    "pass_ms": lambda prediction: 1e3 * prediction.pass_seconds,
    "attention_ms": _attention_ms,
    "memory_gb": lambda prediction: prediction.memory.total / 1e9,
    "weights_and_ring_gb": lambda prediction: (prediction.memory.weights + prediction.memory.kv_ring) / 1e9,
}
