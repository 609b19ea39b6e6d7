"""Pictures of the report: clips side by side, and strips of stills over time."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rtgen.runtime.writers import StreamWriter, encoding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtgen.fidelity.metrics import Frames

GAIN: Final = 4
"""Differences are shown this many times as large: a level of 255 is too little to see."""
WIDEST: Final = 320
"""Pixels; wider pictures are made smaller by a whole number."""
STILLS: Final = 7
"""In a strip."""
_QUALITY: Final = 88
_BORDER: Final = 2


@dataclass(frozen=True)
class SideBySide:
    """FP16, the recipe and their difference, left to right, in one video."""

    caption: str
    video: str
    """A data URI, as all pictures are: the page needs no other file."""
    still: str
    """Its middle frame, for paper and for those who want nothing to move."""
    width: int
    height: int


@dataclass(frozen=True)
class Strip:
    """FP16, the recipe and their difference, one below the other, at a few times from left to right."""

    caption: str
    picture: str
    times: tuple[float, ...]
    """Seconds."""
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """What is to be seen of one recipe."""

    beside: tuple[SideBySide, ...]
    strip: Strip


def side_by_side(candidate: Frames, reference: Frames, frames_per_second: int, caption: str) -> SideBySide:
    """Both clips, uint8 [F, H, W, 3], and what differs."""
    candidate, reference = shrunk(candidate), shrunk(reference)
    joined = np.concatenate([reference, candidate, difference(candidate, reference)], axis=2)
    height, width = joined.shape[1:3]
    return SideBySide(
        caption,
        _uri("video/mp4", _video(joined, frames_per_second)),
        _uri("image/webp", _picture(joined[len(joined) // 2])),
        width,
        height,
    )


def strip(candidate: Frames, reference: Frames, frames_per_second: int, caption: str) -> Strip:
    """Stills of both clips, uint8 [F, H, W, 3], evenly spread from the first frame to the last."""
    numbers = np.linspace(0, len(candidate) - 1, STILLS).round().astype(int)
    one, other = shrunk(candidate[numbers]), shrunk(reference[numbers])
    rows = [np.concatenate(list(_framed(stills)), axis=1) for stills in (other, one, difference(one, other))]
    picture = np.concatenate(rows)
    times = tuple(round(float(number) / frames_per_second, 1) for number in numbers)
    return Strip(caption, _uri("image/webp", _picture(picture)), times, picture.shape[1], picture.shape[0])


def _framed(stills: Frames) -> Frames:
    """Stills with black on two sides, so that neighbours do not run into each other."""
    framed: Frames = np.pad(stills, ((0, 0), (0, _BORDER), (0, _BORDER), (0, 0)))
    return framed


def difference(candidate: Frames, reference: Frames) -> Frames:
    """How far apart two clips are at each pixel, :data:`GAIN` times as large; black where they are equal."""
    apart = np.abs(candidate.astype(np.int16) - reference.astype(np.int16))
    shown: Frames = np.minimum(GAIN * apart, 255).astype(np.uint8)
    return shown


def shrunk(frames: Frames) -> Frames:
    """Frames [F, H, W, 3] no wider than :data:`WIDEST`, by means over squares of pixels. Video wants even sides."""
    factor = -(-frames.shape[2] // WIDEST)
    height, width = (side // factor // 2 * 2 for side in frames.shape[1:3])
    cut = np.asarray(frames[:, : height * factor, : width * factor])
    if factor == 1:
        return cut
    squares = cut.reshape(len(cut), height, factor, width, factor, 3)
    means: Frames = squares.mean(axis=(2, 4)).round().astype(np.uint8)
    return means


def _video(frames: Frames, frames_per_second: int) -> bytes:
    stream = io.BytesIO()
    size = frames.shape[1], frames.shape[2]
    # Its index stays at the end: FFmpeg moves it by opening the file again, and this one has no name.
    settings = replace(encoding("mp4", "libx264"), container_options={})
    writer = StreamWriter(stream, settings, frames_per_second=frames_per_second, size=size)
    writer.write(frames)
    writer.finish()
    return stream.getvalue()


def _picture(frame: Frames) -> bytes:
    """One frame [H, W, 3] as WebP."""
    from av import CodecContext, VideoFrame

    codec: Any = CodecContext.create("libwebp", "w")
    codec.height, codec.width = frame.shape[:2]
    codec.pix_fmt, codec.options = "yuv420p", {"quality": str(_QUALITY)}
    codec.time_base = Fraction(1)
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format="yuv420p")
    packets: Sequence[Any] = [*codec.encode(picture), *codec.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
