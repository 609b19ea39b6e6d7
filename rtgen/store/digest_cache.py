"""Remembers digests of large files, so that weights of several GB are read once and not for every key."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path

from rtgen.store.atomic import write_json
from rtgen.store.keys import file_digest

_LIMIT = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A file written again within one tick of the file system's clock keeps its times; FAT ticks every two seconds.
_CLOCK_TICK_NS = 2_000_000_000


class DigestCache:
    """Digests by absolute path, valid while a file's size and times stay as they were.

    It only saves time: a damaged or unwritable cache file is ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def digest(self, file: Path) -> str:
        """sha256 of a file. Raises OSError when it cannot be read."""
        file = file.resolve()
        mark = _mark(file)
        remembered = self._load().get(str(file))
        if remembered is not None and remembered[:-1] == mark:
            return str(remembered[-1])
        digest = file_digest(file)
        settled = max(mark[1:]) + _CLOCK_TICK_NS < time.time_ns()
        if settled and _mark(file) == mark:
            self._remember(str(file), [*mark, digest])
        return digest

    def _remember(self, name: str, entry: list[int | str]) -> None:
        # Another process may add at the same moment and lose its entry; that costs one more reading, nothing else.
        entries = {known: value for known, value in self._load().items() if Path(known).exists()}
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**entries, name: entry})

    def _load(self) -> dict[str, list[int | str]]:
        try:
            with self.path.open("rb") as file:
                data = json.loads(file.read(_LIMIT))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict):
            return {}
        return {name: value for name, value in data.items() if _well_formed(value)}


def _mark(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _well_formed(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(number, int) for number in value[:3])
        and isinstance(value[3], str)
        and _SHA256.fullmatch(value[3]) is not None
    )
