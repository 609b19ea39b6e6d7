"""Which prompts a recipe is calibrated on: those of the request, else the model's own."""

from __future__ import annotations

from pathlib import Path

from rtgen.config.locate import calibration_files
from rtgen.config.model import ModelConfig
from rtgen.config.recipe import RecipeConfig
from rtgen.errors import ConfigError, UsageError
from rtgen.quantize.prompts import read_prompts


def calibration_prompts(file: Path | None, model: ModelConfig, recipe: RecipeConfig) -> tuple[str, ...]:
    """The prompts that a recipe is calibrated on: of ``file``, else of the model's own list; none where it is not.

    Raises PromptError for a file that is no list of prompts, UsageError for one that would change nothing.
    """
    if recipe.quantization is None or not recipe.quantization.is_calibrated:
        if file is not None:
            raise UsageError(
                f"recipe '{recipe.name}' is not calibrated, so --calib-prompts would change nothing",
                hint="leave it out, or choose a recipe with an algorithm: rtgen recipe ls",
            )
        return ()
    if file is None:
        shipped = calibration_files()
        if model.calibration.prompts not in shipped:
            raise ConfigError(
                f"{model.name} names calibration prompts '{model.calibration.prompts}', which do not exist",
                hint=f"one of: {', '.join(shipped)}; or give --calib-prompts FILE",
            )
        file = shipped[model.calibration.prompts]
    return read_prompts(file)
