"""Encoders of finished frames: one class for each way to keep a video.

A writer is used by one thread. It raises OSError, av's FFmpegError and RtgenError; ``rtgen.runtime.sink`` turns the
first two into messages.
"""

import errno
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rtgen.errors import MissingDependencyError, OutputError
from rtgen.runtime.reserved_file import ReservedFile
from rtgen.runtime.resize import fitted

Frames = NDArray[np.uint8]
"""RGB, [F, H, W, 3]."""

Encoder = Literal["libx264", "h264_nvenc", "libvpx-vp9", "gif", "libwebp_anim"]


class SupportsWrite(Protocol):
    """A binary stream that only moves forward, such as a pipe."""

    def write(self, data: bytes, /) -> int: ...


class Writer(Protocol):
    """Keeps frames somewhere."""

    def write(self, frames: Frames) -> None: ...

    def skip(self, frames: int) -> None:
        """Leave out the time of so many frames: the one before them stays on the screen."""

    def finish(self) -> None:
        """Make what was written playable and give it its final name."""

    def abort(self) -> None:
        """Leave nothing half-written. Idempotent, also after a failure."""


@dataclass(frozen=True)
class Encoding:
    """How FFmpeg is asked to encode."""

    container: str
    encoder: Encoder
    pixel_format: str
    options: Mapping[str, str]
    container_options: Mapping[str, str]


_ENCODER_OPTIONS: Final[Mapping[Encoder, Mapping[str, str]]] = {
    "libx264": {"preset": "veryfast", "crf": "18"},
    "h264_nvenc": {"preset": "p4", "rc": "vbr", "cq": "19", "b": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "row-mt": "1", "crf": "24", "b": "0"},
    "gif": {},
    "libwebp_anim": {"quality": "85", "compression_level": "4"},
}


def encoding(container: str, encoder: Encoder, *, live: bool = False) -> Encoding:
    """The settings for a container; ``live`` trades a few per cent of size for frames that leave at once."""
    options, container_options = dict(_ENCODER_OPTIONS[encoder]), dict[str, str]()
    if container == "mp4":
        container_options["movflags"] = "+faststart"
    if container == "webp":
        container_options["loop"] = "0"  # for ever, as GIFs do
    if live and encoder == "libx264":
        options["tune"] = "zerolatency"
    if live:
        container_options |= {"flush_packets": "1", "cluster_time_limit": "100"}
    return Encoding(container, encoder, "rgb24" if encoder == "gif" else "yuv420p", options, container_options)


class StreamWriter:
    """One encoded video stream in a container, written to a binary stream that may or may not seek.

    Frames of another size are scaled to the stream's.
    """

    def __init__(
        self, target: SupportsWrite, settings: Encoding, *, frames_per_second: int, size: tuple[int, int]
    ) -> None:
        import av
        from av.error import FFmpegError

        self._settings, self._size = settings, size
        self._container = av.open(
            target, "w", format=settings.container, container_options=dict(settings.container_options)
        )
        self._graph = _palette_graph(size, frames_per_second) if settings.encoder == "gif" else None
        stream: Any = self._container.add_stream(
            settings.encoder, rate=frames_per_second, options=dict(settings.options)
        )
        stream.height, stream.width = size
        stream.pix_fmt = "pal8" if self._graph else settings.pixel_format
        if self._graph is None:
            _tag_colours(stream.codec_context)
        self._stream = stream
        self._count = 0
        try:
            # Now: FFmpeg would open file and encoder with the first frame, after minutes of work.
            _open_encoder(self._container)
        except FFmpegError as error:
            if settings.encoder != "h264_nvenc":
                raise
            raise MissingDependencyError(
                "the GPU's video encoder (h264_nvenc) does not work here", hint="leave it out to encode on the CPU"
            ) from error

    def write(self, frames: Frames) -> None:
        from av import VideoFrame

        for pixels in frames:
            fitting = np.ascontiguousarray(fitted(pixels, self._size))
            frame = VideoFrame.from_ndarray(fitting, format="rgb24")
            frame.pts, frame.time_base = self._count, 1 / self._stream.codec_context.framerate
            self._count += 1
            if self._graph is None:
                self._mux(_to_video_range(frame, self._settings.pixel_format))
            else:
                self._graph.push(frame)
                self._drain()

    def skip(self, frames: int) -> None:
        self._count += frames

    def finish(self) -> None:
        if self._graph is not None:
            self._graph.push(None)
            self._drain()
        self._mux(None)
        self._container.close()

    def abort(self) -> None:
        self._container.close()

    def _mux(self, frame: Any) -> None:
        self._container.mux(self._stream.encode(frame))

    def _drain(self) -> None:
        from av.error import BlockingIOError as NothingYet
        from av.error import EOFError as Finished

        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (NothingYet, Finished):
                return
            self._mux(frame)


class FileWriter:
    """A stream in a file that appears under its name only when it is whole.

    A full disk raises OSError while there is still room to :meth:`finish`.
    """

    def __init__(self, path: Path, settings: Encoding, *, frames_per_second: int, size: tuple[int, int]) -> None:
        self._path = path.absolute()
        self._partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.partial")
        self._finished = False
        try:
            self._file = ReservedFile(self._partial)
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        try:
            self._stream = StreamWriter(self._file, settings, frames_per_second=frames_per_second, size=size)
        except BaseException:
            self._file.close()
            self._partial.unlink(missing_ok=True)
            raise

    def write(self, frames: Frames) -> None:
        self._stream.write(frames)
        if self._file.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def skip(self, frames: int) -> None:
        self._stream.skip(frames)

    def finish(self) -> None:
        self._stream.finish()
        self._file.close()
        self._finished = True
        try:
            self._partial.replace(self._path)
        except OSError as error:  # such as an older video that a player holds open, on Windows
            aside = self._partial.rename(
                self._path.with_name(f"{self._path.stem}-{secrets.token_hex(4)}{self._path.suffix}")
            )
            raise OutputError(
                f"{self._path.name} cannot be replaced: {error.strerror}", hint=f"the video is in {aside}"
            ) from error

    def abort(self) -> None:
        try:
            self._stream.abort()
        finally:
            self._file.close()
            if not self._finished:
                self._partial.unlink(missing_ok=True)


class FolderWriter:
    """Lossless frames ``000000.png`` … in a folder, each in its own size and written whole; they stay when the run is
    interrupted."""

    def __init__(self, folder: Path, *, size: tuple[int, int]) -> None:
        if next(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].png"), None) is not None:
            raise OutputError(f"{folder} already holds frames", hint="name another folder, or empty this one")
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._count = 0
        self._size, self._encoder = size, _png_encoder(size)

    def write(self, frames: Frames) -> None:
        from av import VideoFrame

        for pixels in frames:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = self._count
            if pixels.shape[:2] != self._size:
                self._size = pixels.shape[:2]
                self._encoder = _png_encoder(self._size)
            data = b"".join(bytes(packet) for packet in self._encoder.encode(frame))
            partial = self._folder / f".{self._count:06}.partial"
            try:
                partial.write_bytes(data)
                partial.replace(self._folder / f"{self._count:06}.png")
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            self._count += 1

    def skip(self, frames: int) -> None:
        self._count += frames

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _png_encoder(size: tuple[int, int]) -> Any:
    from av import CodecContext

    encoder: Any = CodecContext.create("png", "w")
    encoder.height, encoder.width = size
    encoder.pix_fmt, encoder.framerate = "rgb24", 1
    return encoder


def _open_encoder(container: Any) -> None:
    container.start_encoding()


def _tag_colours(context: Any) -> None:
    """BT.709, limited range: what players assume for anything but old television, said explicitly."""
    context.color_primaries = context.color_trc = context.colorspace = 1
    context.color_range = 1


def _to_video_range(frame: Any, pixel_format: str) -> Any:
    converted = frame.reformat(
        format=pixel_format, src_color_range="JPEG", dst_colorspace="ITU709", dst_color_range="MPEG"
    )
    converted.pts, converted.time_base = frame.pts, frame.time_base
    return converted


def _palette_graph(size: tuple[int, int], frames_per_second: int) -> Any:
    """A palette for each frame, so that memory stays flat and the first frame is written at once."""
    from fractions import Fraction

    from av.filter import Graph

    graph: Any = Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format="rgb24", time_base=Fraction(1, frames_per_second))
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph
