"""One lock and one family of temporary folders per entry of the store.

The kernel drops a lock when its process dies, so a lock file that is left behind means nothing. Lock files are never
removed: on POSIX, removing one would let two processes hold "the same" lock.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

from rtgen.store.atomic import TRASH, delete

_POLL_SECONDS = 0.1
_TEMPORARY = re.compile(rf"(?P<owner>[0-9a-f]{{32}}|{TRASH})-[0-9a-f]{{8,16}}")


class EntryLock:
    """The right to build or replace one entry, named by its path below the root such as ``.stages/onnx/<key>``."""

    def __init__(self, root: Path, entry: str) -> None:
        # A digest keeps paths short: Windows stops at 260 characters, and builds nest folders under the temporary one.
        self._owner = hashlib.sha256(entry.encode()).hexdigest()[:32]
        self._temporaries = root / ".tmp"
        self._lock = FileLock(lock_path(root, self._owner))

    def acquire(self, on_wait: Callable[[], None] | None = None) -> None:
        """Wait for the lock. ``on_wait`` is called once if somebody else holds it. Raises OSError."""
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if on_wait is not None:
                on_wait()
            self._lock.acquire(poll_interval=_POLL_SECONDS)

    def release(self) -> None:
        self._lock.release()

    def temporary(self) -> Path:
        """A new empty folder for the holder; what a killed holder left is removed first. Raises OSError."""
        self._temporaries.mkdir(parents=True, exist_ok=True)
        for orphan in self._temporaries.glob(f"{self._owner}-*"):
            with suppress(OSError):  # Windows: still open somewhere; prune finds it later
                delete(orphan)
        folder = self._temporaries / f"{self._owner}-{token_hex(4)}"
        folder.mkdir()
        return folder


def lock_path(root: Path, owner: str) -> Path:
    return root / ".locks" / f"{owner}.lock"


def unfinished(root: Path) -> Iterator[Path]:
    """Everything under ``.tmp``: builds that run, builds that were killed, and removed entries not yet deleted."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted(path for path in (root / ".tmp").iterdir() if _TEMPORARY.fullmatch(path.name))


@contextmanager
def claim_orphan(root: Path, path: Path) -> Iterator[bool]:
    """Hold the lock that owns an entry of :func:`unfinished`; False while a living build holds it."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or match["owner"] == TRASH:
        yield match is not None
        return
    file = lock_path(root, match["owner"])
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
