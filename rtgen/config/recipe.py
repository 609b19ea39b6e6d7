"""Schema of ``configs/recipes/*.toml``: how numbers are represented."""

from typing import Literal

from pydantic import Field

from rtgen.config.base import Section
from rtgen.config.gpu import Compiler

Precision = Literal["float16", "float32"]


class WeightQuantization(Section):
    """Matrices stored as INT4 codes and float16 scales: round to nearest, symmetric, in blocks along the input.

    Every matrix product of the listed components is meant, except what the last two settings leave out.
    """

    bits: Literal[4] = 4
    block: Literal[64, 128] = 64
    """Weights of one row that share a scale."""
    components: tuple[Literal["text_encoder", "denoiser"], ...] = Field(default=("denoiser",), min_length=1)
    minimum_elements: int = Field(default=4096, ge=0)
    """Smaller matrices stay as they are."""
    exclude: tuple[str, ...] = ()
    """Names in the checkpoint, with ``*`` and ``?``, of matrices that stay as they are."""


class RecipeConfig(Section):
    """A numeric recipe: the element type that components are exported in, and where it can run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    precision: Precision
    compilers: tuple[Compiler, ...] = Field(min_length=1)
    """The compilers that accept it."""
    minimum_compute_capability: str | None = Field(default=None, pattern=r"^\d+\.\d$")
    weights: WeightQuantization | None = None
    """How weights are quantized; None leaves them in ``precision``."""
