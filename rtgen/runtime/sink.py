"""Where finished frames go: a file, a folder of images or a pipe, written by a thread of its own."""

import contextlib
import errno
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rtgen.errors import OutputError, RtgenError, SizeError, UsageError
from rtgen.runtime.writers import Encoder, Encoding, FileWriter, FolderWriter, Frames, StreamWriter, Writer, encoding

_QUEUED_CHUNKS: Final = 4
"""Chunks that may wait for the writer: enough to hide a hiccup, few enough to keep memory flat."""

_POLL_SECONDS: Final = 0.1

_CONTAINERS: Final[Mapping[str, tuple[str, Encoder]]] = {
    ".mp4": ("mp4", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
    ".gif": ("gif", "gif"),
    ".webp": ("webp", "libwebp_anim"),
}
_FORMATS: Final = f"{', '.join(_CONTAINERS)}, a folder (frames/) for PNG frames, or - for stdout"


class Sink:
    """Takes chunks of frames and writes them behind the caller's back.

    An error of the writer surfaces as OutputError on the next :meth:`write` or :meth:`close`. As a context manager it
    closes on the way out, and on an exception too: the frames finished so far stay, in a playable file.
    """

    def __init__(self, open_writer: Callable[[], Writer], name: str) -> None:
        """``open_writer`` is called at once, so that a bad path is known before the first frame is made."""
        self.name = name
        """Where the frames go, for people."""
        self.frames = 0
        """Frames taken so far."""
        self._error: BaseException | None = None
        self._written = False
        self._closed = False
        self._aborted = threading.Event()
        self._queue: queue.Queue[Frames | int | None] = queue.Queue(_QUEUED_CHUNKS)
        with self._explained():
            self._writer = open_writer()
        self._thread = threading.Thread(target=self._work, name="rtgen-sink", daemon=True)
        self._thread.start()

    def write(self, frames: Frames) -> None:
        """Queue uint8 RGB frames [F, H, W, 3], waiting while the writer is far behind. The array must not change."""
        if self._closed:
            raise ValueError("the sink is closed")
        self._put(frames)
        self.frames += len(frames)

    def skip(self, frames: int) -> None:
        """Leave out the time of ``frames`` frames, in order with :meth:`write`: the video shows the one before them."""
        if self._closed:
            raise ValueError("the sink is closed")
        self._put(frames)

    def close(self) -> None:
        """Write what is queued and give the file its name; nothing is left when no frame came. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(Exception):  # raised again below, once the thread has ended
            self._put(None)
        self._thread.join()
        self._raise_error()

    def abort(self) -> None:
        """Drop everything that is not on disk under its final name. Idempotent, and nothing to do after close()."""
        if self._closed:
            return
        self._closed = True
        self._aborted.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The first error is the one to tell.
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            self.close()

    def _put(self, item: Frames | int | None) -> None:
        while True:
            self._raise_error()
            try:
                return self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            self._write_all()
        except BaseException as error:  # handed to the caller's thread
            self._error = error
            self._salvage()

    def _salvage(self) -> None:
        """Keep the frames finished before an error where that still works; the first error is the one to tell."""
        with contextlib.suppress(Exception):
            if self._written and not self._aborted.is_set():
                self._writer.finish()
                return
        with contextlib.suppress(Exception):
            self._writer.abort()

    def _write_all(self) -> None:
        while not self._aborted.is_set():
            try:
                frames = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if frames is None:
                break
            if isinstance(frames, int):
                self._writer.skip(frames)
                continue
            self._writer.write(frames)
            self._written = True
        if self._written and not self._aborted.is_set():
            self._writer.finish()
        else:
            self._writer.abort()

    def _raise_error(self) -> None:
        if self._error is not None:
            with self._explained():
                raise self._error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RtgenError:
            raise
        except Exception as error:
            explanation = _explain(error, self.name)
            if explanation is None:
                raise
            raise explanation from error


def open_sink(output: str, *, frames_per_second: int, size: tuple[int, int], encoder: Encoder | None = None) -> Sink:
    """A sink for ``output``: ``.mp4``, ``.mkv``, ``.webm``, ``.gif``, ``.webp``, a folder for PNG frames, or ``-``.

    A name that ends in ``/``, in ``.png-folder`` or that is a folder gets lossless frames ``000000.png`` …; ``-`` is a
    Matroska stream of H.264 on stdout. ``size`` is height and width of the video, which frames of another size are
    scaled to; PNG frames keep theirs. ``encoder`` replaces ``libx264`` by
    ``h264_nvenc`` (the GPU's encoder) where the container takes H.264.

    Raises UsageError for a name that says no format, SizeError for odd sizes, OutputError when it cannot be written,
    MissingDependencyError when the GPU's encoder does not work here.
    """
    if min(size) <= 0 or size[0] % 2 or size[1] % 2:
        raise SizeError(f"a video of {size[0]}x{size[1]} cannot be written: height and width must be even")
    path = Path(output)
    if output == "-":
        settings = _settings("matroska", "libx264", encoder, live=True)
        return Sink(lambda: StreamWriter(_Pipe(), settings, frames_per_second=frames_per_second, size=size), "stdout")
    if not output.strip():
        raise UsageError("the output has no name", hint=f"one of {_FORMATS}")
    is_folder = output.endswith(("/", "\\", ".png-folder")) or path.is_dir()
    if not is_folder and path.suffix.lower() not in _CONTAINERS:
        problem = f"'{path.suffix}' is not a video format rtgen writes" if path.suffix else f"'{output}' has no suffix"
        raise UsageError(problem, hint=f"one of {_FORMATS}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"there is no folder {path.absolute().parent}", hint="create it first, or name another")
    if is_folder:
        return Sink(lambda: FolderWriter(path, size=size), output)
    settings = _settings(*_CONTAINERS[path.suffix.lower()], encoder)
    return Sink(lambda: _open_file(path, settings, frames_per_second, size), output)


def _settings(container: str, default: Encoder, encoder: Encoder | None, *, live: bool = False) -> Encoding:
    if encoder not in (None, default) and (default, encoder) != ("libx264", "h264_nvenc"):
        raise UsageError(f"{container} files are not written with {encoder}", hint="leave the encoder out")
    return encoding(container, encoder or default, live=live)


def _open_file(path: Path, settings: Encoding, frames_per_second: int, size: tuple[int, int]) -> Writer:
    return FileWriter(path, settings, frames_per_second=frames_per_second, size=size)


class _Pipe:
    """stdout as FFmpeg may use it: no seeking, and every write leaves at once."""

    def write(self, data: bytes) -> int:
        count = sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return count


def _explain(error: Exception, name: str) -> OutputError | None:
    """What went wrong, for people; None for a mistake in the program rather than on the disk."""
    from av.error import FFmpegError

    if not isinstance(error, OSError | FFmpegError):
        return None
    if error.errno == errno.ENOSPC:
        return OutputError(f"the disk is full: {name} is not complete", hint="free some space, or write elsewhere")
    if error.errno == errno.EPIPE:
        return OutputError("the program that reads the video has closed its end")
    if isinstance(error, PermissionError):
        return OutputError(f"no permission to write {name}", hint="name another folder with --output")
    return OutputError(f"cannot write {name}: {error.strerror or error}")
