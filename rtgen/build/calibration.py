"""The stages before quantized graphs: recorded streams, then quantized weights and what was decided about them.

Recipes that are calibrated share the streams of a model, and GPUs share both stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan
    from rtgen.progress import Progress

STREAMS = "calibration"
CODES = "codes"


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

    def advance(fraction: float, detail: str) -> None:
        progress.update(STREAMS, fraction, detail)

    record_streams(plan.model, model_entry(plan), layered, contexts, device, advance).write(folder)


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
