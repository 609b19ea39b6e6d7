"""The fidelity report of a model's recipes: clips of each beside FP16's, and what the package of each takes."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtgen.build.plan import plan_build
from rtgen.config.load import can_run, list_recipes, load_gpu, load_recipe
from rtgen.errors import UsageError
from rtgen.fidelity.studio import FinishedReport, Studio, with_recipe

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.config.gpu import GpuConfig
    from rtgen.config.recipe import RecipeConfig
    from rtgen.progress import Progress

CLIPS: Final = 8
LENGTHS: Final = (5.0, 30.0)
"""Seconds."""


@dataclass(frozen=True)
class ReportRequest:
    """A report: the recipes of one model on one target, and the clips that are made of each."""

    build: BuildRequest
    """Model, target, weights and store; its recipe is not looked at."""
    recipes: tuple[str, ...] = ()
    """None of them: all that quantize and that the target can run."""
    clips: int = CLIPS
    """Of the shortest length; there are fewer longer ones."""
    lengths: tuple[float, ...] = LENGTHS


def make_report(request: ReportRequest, progress: Progress) -> FinishedReport:
    """Build every recipe, make its clips and compare them with FP16's.

    All that can be refused is refused before any work. A package that cannot be built here leaves a note, as does what
    cannot be measured. Raises what :func:`rtgen.build.plan.plan_build` raises, UsageError, CheckpointError, BuildError.
    """
    start = time.perf_counter()
    gpu = load_gpu(request.build.gpu)
    reference = reference_recipe(gpu)
    names = tuple(dict.fromkeys(request.recipes)) or quantizing_recipes(gpu)
    if reference in names:
        raise UsageError(f"'{reference}' is what the other recipes are compared with", hint="leave it out")
    for name in (*names, reference):
        plan_build(with_recipe(request.build, name))
    with closing(Studio(request.build, reference, request.clips, request.lengths, progress)) as studio:
        return studio.report(names, start)


def quantizing_recipes(gpu: GpuConfig) -> tuple[str, ...]:
    """The recipes that quantize and that a GPU can run. Raises UsageError where there are none."""
    found = tuple(recipe.name for recipe in _possible(gpu) if recipe.quantization is not None)
    if not found:
        raise UsageError(f"no recipe quantizes anything on {gpu.name}", hint="rtgen recipe ls shows the recipes")
    return found


def reference_recipe(gpu: GpuConfig) -> str:
    """The recipe without quantization that a GPU runs: FP16, or FP32 on a processor. Raises UsageError."""
    found = [recipe.name for recipe in _possible(gpu) if recipe.quantization is None]
    if not found:
        raise UsageError(f"no recipe leaves {gpu.name} unquantized, to compare with", hint="rtgen recipe ls shows all")
    return found[0]


def _possible(gpu: GpuConfig) -> list[RecipeConfig]:
    return [recipe for recipe in map(load_recipe, list_recipes()) if can_run(gpu, recipe)]
