"""What a user asks the build for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BuildRequest:
    """A package to build.

    ``sizes`` (height, width) replace the model's resolution profiles by these sizes and those between them.
    ``decoder``: one of those that the model's config offers, None for the one it names. ``calibration_prompts``: a text
    file in place of the model's own list. ``kv_bits``: of a number in the K/V ring, 16, 8 or 4; None for the
    recipe's. ``backend``: the compiler to build with, None for the one that the GPU's config names.
    """

    gpu: str
    model: str = "postcard"
    recipe: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    weights: Path | None = None
    store: Path | None = None
    force: bool = False
    decoder: str | None = None
    calibration_prompts: Path | None = None
    kv_bits: int | None = None
    backend: str | None = None
