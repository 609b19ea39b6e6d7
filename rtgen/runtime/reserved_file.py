"""A file that keeps some of the disk back, so that a video can still be finished when the disk is full.

FFmpeg gives up a stream after the first write that fails, and an MP4 without its index does not play. So FFmpeg must
not see that the disk is full: the first write without room takes the reserve, and the writer ends the video with it.
"""

import contextlib
import errno
import io
import os
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 4 << 20
"""For the index of an hour of frames (some 25 bytes each) and for what the encoder holds back."""

_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class ReservedFile:
    """A new binary file for FFmpeg. Its reserve lies beside it, under its name and ``.reserve``."""

    def __init__(self, path: Path, reserve_bytes: int = RESERVE_BYTES) -> None:
        """Raises OSError, most of all where the reserve finds no room."""
        self.name = str(path)  # FFmpeg opens it a second time to move the index of an MP4 to its beginning
        self.is_full = False
        """Whether the reserve had to be used: nothing more should be begun."""
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._file = io.FileIO(path, "x+")
        try:
            with self._reserve.open("xb") as reserve:
                reserve.write(os.urandom(reserve_bytes))  # bytes that no file system can store in less
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes, /) -> int:
        """All of ``data``. Raises OSError when not even the reserve has room for it."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                if error.errno not in _FULL or self.is_full:
                    raise
                self.is_full = True
                self._reserve.unlink(missing_ok=True)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """Close it and give the reserve back. Idempotent."""
        self._file.close()
        with contextlib.suppress(OSError):  # it has nothing in it that anybody could miss
            self._reserve.unlink(missing_ok=True)
