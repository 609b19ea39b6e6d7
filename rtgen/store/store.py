"""The store: stages and packages that are made once, by one process, and found by everybody.

Every entry goes fast path -> lock -> look again -> build in a temporary folder -> publish with one rename. A process
that dies leaves at most a temporary folder, which the next build of that entry and every prune remove.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rtgen.engine.manifest import Manifest
from rtgen.engine.package import verify, write_manifest
from rtgen.errors import PackageInvalidError, StoreError
from rtgen.progress import Progress
from rtgen.store.atomic import delete, publish, remove_tree
from rtgen.store.digest_cache import DigestCache
from rtgen.store.failures import disk_full, is_disk_full, store_errors
from rtgen.store.inventory import (
    STAGES,
    PackageInfo,
    StageInfo,
    folder_size,
    manifests,
    package_infos,
    stage_infos,
    touch,
)
from rtgen.store.keys import KEY
from rtgen.store.location import default_root
from rtgen.store.locks import EntryLock, claim_orphan, unfinished
from rtgen.store.pruning import Entry, Limits, PruneReport, Removal, plan
from rtgen.store.stage import seal_stage, stage_problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Store:
    """A folder of stages and packages, safe to use from many processes at once."""

    def __init__(self, root: Path | None = None, *, bundled: Sequence[Path] = ()) -> None:
        """``root``: None for :func:`rtgen.store.location.default_root`; made when first written to.

        ``bundled``: read-only folders with published stages at ``<kind>/<key>``, looked up before one is built.
        """
        self.root = (root if root is not None else default_root()).absolute()
        self.bundled = tuple(bundled)
        self._digests = DigestCache(self.root / ".digests.json")
        self._trash = self.root / ".tmp"

    def stage(
        self, kind: str, key: str, make: Callable[[Path], None], *, on_wait: Callable[[], None] | None = None
    ) -> Path:
        """The folder of a stage, made by ``make(empty_folder)`` unless a complete one is there.

        ``on_wait`` is called when another process is making it. Raises StoreError when the store cannot be written or
        the disk is full, ValueError for a malformed kind or key, and whatever ``make`` raises.
        """
        entry = self.root / STAGES / _checked(kind) / _checked_key(key)

        def build(folder: Path) -> None:
            make(folder)
            seal_stage(folder)

        path, _ = self._obtain(entry, lambda: self.find_stage(kind, key), build, on_wait)
        return path

    def find_stage(self, kind: str, key: str) -> Path | None:
        """The folder of a stage that is there and complete, or None. Raises ValueError for a malformed kind or key."""
        own = self.root / STAGES / _checked(kind) / _checked_key(key)
        places = (own, *(folder / kind / key for folder in self.bundled))
        return next((path for path in places if stage_problem(path) is None), None)

    def package(
        self,
        model: str,
        gpu: str,
        key: str,
        make: Callable[[Path], Manifest],
        *,
        on_wait: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ) -> tuple[Path, bool]:
        """The folder of a package, and whether it was there already (every hash is checked, reported to ``progress``).

        Otherwise ``make(empty_folder)`` writes the files and returns the manifest with ``files={}``, which is filled
        in and written here. ``on_wait`` and errors as in :meth:`stage`; ValueError also when the manifest is of
        another model, GPU or key.
        """
        entry = self._package_path(model, gpu, key)

        def look() -> Path | None:
            try:
                verify(entry, progress=progress)
            except PackageInvalidError:
                return None
            return entry

        def build(folder: Path) -> None:
            manifest = make(folder)
            named = (manifest.model.name, manifest.target.gpu, manifest.key)
            if named != (model, gpu, key):
                raise ValueError(f"the manifest is of {named} and not of {(model, gpu, key)}")
            write_manifest(folder, manifest)

        return self._obtain(entry, look, build, on_wait)

    def find_package(self, model: str, gpu: str, key: str) -> Path | None:
        """Where a package is, or None. It is not verified: ``rtgen.engine.package.open_package`` does that."""
        path = self._package_path(model, gpu, key)
        if not path.is_dir():
            return None
        touch(path)
        return path

    def manifests(self, model: str, gpu: str) -> list[Manifest]:
        """Of every package of a model and GPU, as far as they can be read. Raises StoreError."""
        with store_errors(self.root, "read"):
            return manifests(self.root, _checked(model), _checked(gpu))

    def packages(self) -> list[PackageInfo]:
        """All packages, broken ones too, by model, GPU and key. Nothing is hashed. Raises StoreError."""
        with store_errors(self.root, "read"):
            return package_infos(self.root)

    def stages(self) -> list[StageInfo]:
        """All stages, broken ones too, by kind and key. Nothing is hashed. Raises StoreError."""
        with store_errors(self.root, "read"):
            return stage_infos(self.root)

    def size(self) -> int:
        """Bytes of all packages, stages and unfinished work. Raises StoreError."""
        with store_errors(self.root, "read"):
            entries: list[Entry] = [*package_infos(self.root), *stage_infos(self.root)]
            return sum(entry.size for entry in entries) + sum(folder_size(path) for path in unfinished(self.root))

    def file_digest(self, path: Path) -> str:
        """sha256 of a file outside the store, remembered while its size and times stay. Raises OSError."""
        return self._digests.digest(path)

    def remove(self, entry: Entry) -> None:
        """Remove an entry at once and whole. One that is gone already is fine. Raises StoreError when it is in use."""
        if not entry.path.is_relative_to(self.root):
            raise ValueError(f"{entry.path} is not in the store {self.root}")
        try:
            remove_tree(entry.path, self._trash)
        except OSError as error:
            raise StoreError(
                f"cannot remove {entry.path}: {error.strerror or error}",
                hint="close the programs that use it, or run as the user who owns it, then repeat the command",
            ) from error

    def prune(
        self,
        older_than_days: float | None = None,
        keep_latest: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Remove what killed builds left, invalid entries, and what is over the limits (see ``pruning.Limits``).

        Builds that run are left alone. Raises StoreError when the store cannot be read.
        """
        packages, stages = self.packages(), self.stages()
        limits = Limits(older_than_days, keep_latest, max_bytes)
        removed, in_use = self._remove_orphans(dry_run)
        everything: list[Entry] = [*packages, *stages]
        entries = {entry.path: entry for entry in everything}
        remaining = sum(entry.size for entry in everything)
        for removal in plan(packages, stages, limits, time.time()):
            try:
                if not dry_run:
                    self.remove(entries[removal.path])
            except StoreError:
                in_use.append(removal.path)
                continue
            removed.append(removal)
            remaining -= removal.size
        return PruneReport(tuple(removed), tuple(in_use), remaining, dry_run)

    def _package_path(self, model: str, gpu: str, key: str) -> Path:
        return self.root / _checked(model) / _checked(gpu) / _checked_key(key)

    def _obtain(
        self,
        entry: Path,
        look: Callable[[], Path | None],
        build: Callable[[Path], None],
        on_wait: Callable[[], None] | None,
    ) -> tuple[Path, bool]:
        """The valid entry that ``look`` finds and True, or ``entry`` after ``build`` and False."""
        lock = EntryLock(self.root, entry.relative_to(self.root).as_posix())
        found = look()
        if found is None:
            with store_errors(self.root, "write to"):
                lock.acquire(on_wait)
            try:
                found = look()
                if found is None:
                    self._build(entry, lock, build, keep=lambda path: look() == path)
                    return entry, False
            finally:
                lock.release()
        if found == entry:  # and not a bundled one, which is never written
            touch(found)
        return found, True

    def _build(self, entry: Path, lock: EntryLock, build: Callable[[Path], None], keep: Callable[[Path], bool]) -> None:
        with store_errors(self.root, "write to"):
            folder = lock.temporary()
        try:
            build(folder)
            with store_errors(self.root, "write to"):
                publish(folder, entry, trash=self._trash, keep=keep)
        except BaseException as error:
            written = None
            with suppress(OSError):  # Windows: a file may still be open; the next build or prune removes the rest
                written = folder_size(folder)
                delete(folder)
            if is_disk_full(error) and not isinstance(error, StoreError):
                raise disk_full(self.root, written) from error
            raise

    def _remove_orphans(self, dry_run: bool) -> tuple[list[Removal], list[Path]]:
        removed: list[Removal] = []
        in_use: list[Path] = []
        for path in unfinished(self.root):
            try:
                with claim_orphan(self.root, path) as free:
                    if not free:
                        continue
                    removal = Removal(path, folder_size(path), "left by a process that was killed")
                    if not dry_run:
                        delete(path)
                    removed.append(removal)
            except OSError:
                in_use.append(path)
        return removed, in_use


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot name a folder of the store")
    return name


def _checked_key(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"'{key}' is not a key: 64 hexadecimal digits")
    return key
