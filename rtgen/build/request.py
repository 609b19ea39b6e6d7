"""What a user asks the build for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BuildRequest:
    """A package to build. ``sizes`` (height, width) replace the model's resolution profiles by exactly these sizes."""

    gpu: str
    model: str = "postcard"
    recipe: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    weights: Path | None = None
    store: Path | None = None
    force: bool = False
