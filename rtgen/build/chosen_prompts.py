"""Which prompts a recipe is calibrated on: those of the request, else the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rtgen.config.decoder_codes import has_coded_decoder
from rtgen.config.locate import calibration_files
from rtgen.config.model import ModelConfig
from rtgen.config.recipe import RecipeConfig
from rtgen.errors import ConfigError, UsageError
from rtgen.quantize.prompts import read_prompts

DECODER_PROMPTS: Final = 4
"""Of the model's list, where the decoder alone is calibrated: extremes of its convolutions take few frames to show."""


def calibration_prompts(file: Path | None, model: ModelConfig, recipe: RecipeConfig) -> tuple[str, ...]:
    """The prompts that a recipe is calibrated on: of ``file``, else of the model's own list; none where it is not.

    Where the decoder alone is calibrated, those are the first of the list.

    Raises PromptError for a file that is no list of prompts, UsageError for one that would change nothing.
    """
    if not is_calibrated(model, recipe):
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
        prompts = read_prompts(shipped[model.calibration.prompts])
        return prompts if _calibrates_denoiser(recipe) else prompts[:DECODER_PROMPTS]
    return read_prompts(file)


def is_calibrated(model: ModelConfig, recipe: RecipeConfig) -> bool:
    """Whether streams of a model are recorded for a recipe."""
    return _calibrates_denoiser(recipe) or has_coded_decoder(model, recipe)


def _calibrates_denoiser(recipe: RecipeConfig) -> bool:
    return recipe.quantization is not None and recipe.quantization.is_calibrated
