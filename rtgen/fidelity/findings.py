"""What the report says, as data: ``report.json`` holds it, and the page is drawn from it."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from rtgen.config.base import Section
from rtgen.config.recipe import Precision
from rtgen.quantize.result import LayerResult

SCHEMA: Final = "rtgen.fidelity/1"

Decibels = float | None
"""None where there is no difference at all: JSON has no infinity."""


class Stage(Section):
    """A stage of the build, and how long it took."""

    name: str
    seconds: float
    cached: bool
    """Whether the store had it, so that ``seconds`` is the time to find it."""


class Build(Section):
    """The package of a recipe for the target."""

    package_bytes: int
    denoiser_bytes: int
    """The engine of the component that is quantized."""
    seconds: float
    cached: bool
    stages: tuple[Stage, ...]


class Measured(Section):
    """Clips of one length, each beside FP16's of the same prompt and seed. Frames are 8-bit RGB."""

    seconds: float
    clips: int
    psnr_db: Decibels
    """Of the mean squared error over all frames of all clips."""
    clip_psnr_db: tuple[Decibels, ...]
    frame_psnr_db: tuple[Decibels, ...]
    """Frame by frame, over all clips."""
    ssim: float
    lpips: float | None
    """None: not measured; the report's notes say why."""
    attributes: dict[str, float] | None
    """The share of clips that show what was asked for, by attribute; None: not measured."""
    attribute_accuracy: float | None
    """Their mean."""
    attribute_points: float | None
    """Percentage points above that of FP16's clips; below it, if negative."""
    attribute_margin: float | None
    """Half the width of the 95 % interval of ``attribute_points``, in points; clips are what varies."""
    colour_shift: float
    """Between the mean colours of all clips' last seconds, in CIELAB."""
    detail_ratio: float
    """Mean step between neighbouring pixels in all clips' last seconds, against FP16's."""


class Verdict(Section):
    """One figure to be reached."""

    name: str
    kind: Literal["psnr", "attributes", "drift"]
    seconds: float
    measured: str
    """With its unit, for people."""
    wanted: str
    reached: bool | None
    """None: not measured."""
    why: str = ""
    """For figures that are not reached, or not measured."""


class Recipe(Section):
    """Everything about one recipe."""

    name: str
    title: str
    way: str
    """How its clips were made."""
    weight_bits: float | None
    """Bits that a quantized weight takes, scales and low-rank branch included; None: nothing is quantized."""
    kept_share: float
    """Of the weights that the recipe means to quantize, those that stay in FP16."""
    build: Build | None
    build_note: str = ""
    """Why there is no build."""
    velocity_snr_db: Decibels
    """Of single passes of the denoiser on FP16's own inputs, the K/V ring being the recipe's."""
    graph_snr_db: Decibels
    """The same of the graph that the compiler is given, as ONNX Runtime executes it: it confirms the simulation."""
    graph_note: str = ""
    """Why the graph was not executed."""
    layers: tuple[LayerResult, ...]
    measured: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...] = ()


class Reference(Section):
    """FP16's own clips of one length."""

    seconds: float
    attributes: dict[str, float] | None
    attribute_accuracy: float | None


class Clip(Section):
    """``rtgen run --prompt PROMPT --seed SEED`` makes it."""

    prompt: str
    seed: int
    asked: dict[str, str] = Field(default_factory=dict)
    """The value of each attribute that it should show."""


class FidelityReport(Section):
    """The whole report. Recipes are in the order they were asked for."""

    report_schema: str = SCHEMA
    rtgen: str
    model: str
    title: str
    model_digest: str
    gpu: str
    precision: Precision
    """Of what the recipes are compared with."""
    made: str
    """Date and time, UTC."""
    machine: str
    versions: dict[str, str]
    size: tuple[int, int]
    """Height and width of the frames."""
    frames_per_second: int
    seconds: float
    """That the report took."""
    clips: tuple[Clip, ...]
    references: tuple[Reference, ...]
    reference_build: Build | None
    floor: tuple[Measured, ...]
    """The same clips in float32 arithmetic, unquantized: what rounding to FP16 alone does."""
    recipes: tuple[Recipe, ...]
    lpips_note: str = ""
    """Why LPIPS was not measured."""
    attributes_note: str = ""
    """Why attributes were not measured."""
