"""What the decoder's convolutions were seen to take and give, and the 8-bit codes that follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

from pydantic import Field, model_validator

from rtgen.config.base import Section
from rtgen.config.json_file import read_section

FILE_NAME: Final = "ranges.json"
MAXIMUM_BYTES: Final = 1 << 20
"""Far above that of any decoder; a larger file is not read."""

HIGHEST: Final = 255


class Codes(NamedTuple):
    """Unsigned 8-bit codes: a number is (code - zero) * scale."""

    scale: float
    zero: int


class Range(Section):
    """The least and the greatest number of a tensor, 0 included."""

    low: float = Field(le=0)
    high: float = Field(ge=0)

    def widened(self, low: float, high: float) -> Range:
        """With these two in it, too."""
        return Range(low=min(self.low, low), high=max(self.high, high))

    @property
    def codes(self) -> Codes:
        """256 steps over the range. 0 has a code, which is what a convolution sees beyond the border of a frame."""
        scale = (self.high - self.low) / HIGHEST or 1.0
        return Codes(scale, round(-self.low / scale))


class ConvolutionRange(Section):
    """One convolution; ``given`` is the range of its input, ``made`` that of its output, bias included."""

    given: Range
    made: Range


class DecoderRanges(Section):
    """The convolutions of a decoder, by module name."""

    convolutions: Mapping[str, ConvolutionRange]

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.convolutions:
            raise ValueError("no convolution")
        return self

    def write(self, folder: Path) -> None:
        """Write ``ranges.json`` into a stage folder. Raises OSError."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, folder: Path) -> DecoderRanges:
        """Read and check what :meth:`write` wrote. Raises PackageInvalidError."""
        return read_section(cls, folder / FILE_NAME, MAXIMUM_BYTES, "holds no ranges of a decoder")
