"""The stages before quantized graphs: recorded streams, then quantized weights and what was decided about them, and
the ranges of a decoder that is to compute on codes.

Recipes that are calibrated share the streams of a model, and GPUs share both stages.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan
    from rtgen.progress import Progress

STREAMS = "calibration"
CODES = "codes"
RANGES = "ranges"

LONG: Final = 900.0
"""Seconds of recording above which a note says how long it will take, as on a processor with a large model."""


class Forecast:
    """Reports progress of the recording, and once, when a part is done, what all of it takes if that is long."""

    def __init__(self, progress: Progress, place: str, instead: str = "int4-weights") -> None:
        """``place``: what the streams are computed on, for people; ``instead``: a recipe that records nothing."""
        self._progress, self._place, self._instead = progress, place, instead
        self._began, self._said = time.monotonic(), False

    def advance(self, fraction: float, detail: str) -> None:
        self._progress.update(STREAMS, fraction, detail)
        if fraction <= 0 or self._said:
            return
        self._said = True
        expected = (time.monotonic() - self._began) / fraction
        if expected > LONG:
            self._progress.note(
                f"recording streams for calibration will take about {_spoken(expected)} on {self._place}; a CUDA GPU "
                f"is much faster, and recipes that are not calibrated (such as {self._instead}) record nothing"
            )


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"


def make_streams(plan: BuildPlan, folder: Path, progress: Progress) -> None:
    """Record the model's streams into a stage folder. Raises PromptError, CheckpointError."""
    progress.update(STREAMS, 0.0, "loading torch")
    from rtgen.build.engines import model_entry
    from rtgen.models.registry import load
    from rtgen.quantize.contexts import encode_prompts
    from rtgen.quantize.device import Device
    from rtgen.quantize.layered import LayeredDenoiser
    from rtgen.quantize.recorder import record_streams

    device = Device.best()
    progress.update(STREAMS, 0.0, "encoding prompts")
    contexts = encode_prompts(plan.model, plan.weights, plan.calibration_prompts, device, progress.note)
    module, _ = load("denoiser", plan.model, plan.weights, "float16")
    layered = LayeredDenoiser(module, device, resident=True)  # type: ignore[arg-type]  # the denoiser's class
    place = "the GPU" if device.name.startswith("cuda") else "this processor"
    # What only a decoder is calibrated for is built for processors.
    forecast = Forecast(progress, place, "fp32" if plan.has_coded_decoder else "int4-weights")
    record_streams(plan.model, model_entry(plan), layered, contexts, device, forecast.advance).write(folder)


def make_codes(plan: BuildPlan, streams: Path | None, folder: Path, progress: Progress) -> None:
    """Quantize the denoiser's weights into a stage folder, calibrated on ``streams`` where the recipe is.

    Raises UsageError for a model without a matrix to quantize, CheckpointError for weights that cannot be quantized,
    MissingDependencyError without ModelOpt where the recipe needs it.
    """
    progress.update(CODES, 0.0, "loading torch")

    def advance(fraction: float, detail: str) -> None:
        progress.update(CODES, fraction, detail)

    if streams is None:
        from rtgen.quantize.round_to_nearest import round_to_nearest

        round_to_nearest(plan.model, plan.weights, plan.recipe, folder, advance)
        return
    from rtgen.quantize.calibrate import calibrate
    from rtgen.quantize.calibration_set import CalibrationSet
    from rtgen.quantize.device import Device

    recorded = CalibrationSet.read(streams)
    digest = plan.calibration_key
    calibrate(plan.model, plan.weights, recorded, plan.recipe, digest, folder, Device.best(), advance)


def make_ranges(plan: BuildPlan, streams: Path, folder: Path, progress: Progress) -> None:
    """Write the ranges of the decoder's convolutions in recorded ``streams`` into a stage folder.

    Raises CheckpointError for weights that do not fit or make numbers that are not finite.
    """
    progress.update(RANGES, 0.0, "loading torch")
    from rtgen.models.registry import load
    from rtgen.quantize.calibration_set import CalibrationSet
    from rtgen.quantize.decoder_ranges import observe_ranges
    from rtgen.quantize.device import Device

    def advance(fraction: float, detail: str) -> None:
        progress.update(RANGES, fraction, detail)

    module, _ = load("decoder", plan.model, plan.weights, "float32")
    recorded = CalibrationSet.read(streams)
    observe_ranges(module, recorded, Device.best(), advance).write(folder)  # type: ignore[arg-type]  # not the tiny one
