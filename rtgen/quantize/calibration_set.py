"""What the denoiser is given in recorded streams: the inputs of its passes, as files of a stage.

Latents are enough. Whatever a layer sees follows from them, block by block, and the keys and values of past chunks
follow from the clean passes (``rtgen.quantize.replay``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

TABLE: Final = "streams.json"
TENSORS: Final = "streams.safetensors"


@dataclass(frozen=True)
class Stream:
    """One prompt's stream, float32 on the host."""

    prompt: str
    context: Tensor
    """[1, tokens, text_dim]; rows of padding, which are zeros, included."""
    clean: Tensor
    """[chunks, C, F, H, W]: the finished latents of every chunk up to the last recorded one."""
    noisy: Tensor
    """[recorded, steps, C, F, H, W]: the inputs of the denoise passes of the recorded chunks."""


@dataclass(frozen=True)
class CalibrationSet:
    """Streams of one model at one frame size."""

    sigmas: tuple[float, ...]
    """Noise levels of the denoise passes; the clean pass has 0."""
    chunks: tuple[int, ...]
    """The recorded chunks, ascending."""
    streams: tuple[Stream, ...]

    @property
    def passes(self) -> int:
        """Recorded passes, clean ones included."""
        return len(self.streams) * len(self.chunks) * (len(self.sigmas) + 1)

    def write(self, folder: Path) -> None:
        """Write the set into a stage folder. Raises OSError."""
        from safetensors.torch import save_file

        table = {
            "sigmas": self.sigmas,
            "chunks": self.chunks,
            "prompts": [stream.prompt for stream in self.streams],
        }
        (folder / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8", newline="\n")
        save_file(_tensors(self.streams), folder / TENSORS)

    @classmethod
    def read(cls, folder: Path) -> CalibrationSet:
        """Read a set that :meth:`write` wrote."""
        from safetensors.torch import load_file

        table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        streams = tuple(
            Stream(prompt, *(tensors[f"{part}.{number}"] for part in ("context", "clean", "noisy")))
            for number, prompt in enumerate(table["prompts"])
        )
        return cls(tuple(table["sigmas"]), tuple(table["chunks"]), streams)


def _tensors(streams: Sequence[Stream]) -> dict[str, Tensor]:
    return {
        f"{part}.{number}": getattr(stream, part).contiguous()
        for number, stream in enumerate(streams)
        for part in ("context", "clean", "noisy")
    }
