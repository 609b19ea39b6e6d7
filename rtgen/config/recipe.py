"""Schema of ``configs/recipes/*.toml``: how numbers are represented."""

from typing import Literal

from pydantic import Field

from rtgen.config.base import Section
from rtgen.config.gpu import Compiler

Precision = Literal["float16", "float32"]


class RecipeConfig(Section):
    """A numeric recipe: the element type that components are exported in, and where it can run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    precision: Precision
    compilers: tuple[Compiler, ...] = Field(min_length=1)
    """The compilers that accept it."""
    minimum_compute_capability: str | None = Field(default=None, pattern=r"^\d+\.\d$")
