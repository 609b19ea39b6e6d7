"""Turns the operating system's failures into errors that say what to do."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rtgen.errors import StoreError

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


@contextmanager
def store_errors(root: Path, action: str) -> Iterator[None]:
    """Raise StoreError for an OSError inside; ``action`` is such as ``write to``."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(root) from error
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot {action} the store {root}: {reason}",
            hint="choose another folder: set RTGEN_STORE or pass --store FOLDER",
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an exception.

    Libraries that write in native code raise their own types, so causes and messages count as well.
    """
    cause: BaseException | None = error
    for _ in range(20):
        if cause is None:
            return False
        if (isinstance(cause, OSError) and cause.errno in _FULL) or "No space left on device" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def disk_full(root: Path, written: int | None = None) -> StoreError:
    """The error for a full disk; ``written`` is the bytes that a build wrote before it failed."""
    parts = []
    if written:
        parts.append(f"more than {_readable(written)} are needed")
    with suppress(OSError):
        parts.append(f"{_readable(shutil.disk_usage(root).free)} are free")
    detail = f" ({', '.join(parts)})" if parts else ""
    return StoreError(f"the disk is full: {root}{detail}", hint="rtgen cache prune --older-than 7 makes room")


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
