"""Writes that are seen whole or not at all, and removals that are never seen half-done."""

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

TRASH = "trash"
"""What the names of removed folders start with while they wait for deletion."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content at once: readers see the old bytes or the new ones. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """:func:`write_bytes` of JSON with sorted keys."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def publish(temporary: Path, final: Path, *, trash: Path, keep: Callable[[Path], bool]) -> None:
    """Flush a finished folder to the disk and rename it to ``final``, on the same file system.

    If something is at ``final`` already and ``keep`` approves of it, it stays and ``temporary`` is removed; otherwise
    it makes room. Raises OSError.
    """
    _sync_tree(temporary)
    final.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(final):
        if keep(final):
            delete(temporary)
            return
        remove_tree(final, trash)
    rename(temporary, final)
    _sync_folder(final.parent)


def remove_tree(path: Path, trash: Path) -> None:
    """Rename a file or folder into the folder ``trash`` and delete it there: nobody sees it half-deleted.

    Raises OSError and leaves it whole where it cannot be moved (Windows: while a file in it is open).
    What cannot be deleted after the move stays in ``trash``.
    """
    trash.mkdir(parents=True, exist_ok=True)
    grave = trash / f"{TRASH}-{token_hex(8)}"
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) and not mode & stat.S_IWUSR:
            path.chmod(stat.S_IRWXU)  # POSIX moves a folder to another parent only if it is writable itself
        rename(path, grave)
        with suppress(OSError):
            delete(grave)


def delete(path: Path) -> None:
    """Delete a file, link or folder, also what is marked read-only. What is gone already is fine. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        # `onerror` is the only form Python 3.11 has; later ones still take it.
        shutil.rmtree(path, onerror=_retry_writable)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def rename(source: Path, target: Path) -> None:
    """``Path.replace``, patient with Windows, where scanners and indexers hold new files open for a moment."""
    for pause in (0.05, 0.2, 0.8):
        try:
            source.replace(target)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(pause)
    source.replace(target)


def _retry_writable(function: Callable[..., Any], path: str, failure: Any) -> None:
    """Try again with write permission.

    Windows refuses to delete files with the read-only bit, POSIX those in a read-only folder.
    """
    error = failure[1]
    if isinstance(error, FileNotFoundError):
        return
    if not isinstance(error, PermissionError) or function not in (os.unlink, os.rmdir):
        raise error
    with suppress(OSError):
        Path(path).parent.chmod(stat.S_IRWXU)
        if not Path(path).is_symlink():
            Path(path).chmod(stat.S_IRWXU)
    function(path)


def _sync_tree(folder: Path) -> None:
    # Without this, a power cut after the rename may leave files of the right size full of zeros.
    for parent, _, names in os.walk(folder):
        for name in names:
            # Windows flushes only through a handle that may write; POSIX also through one that reads.
            descriptor = os.open(Path(parent, name), os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and NTFS journals renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
