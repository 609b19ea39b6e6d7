"""Which entries a store can do without."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rtgen.store.inventory import PackageInfo, StageInfo

_DAY = 86_400.0
Entry = PackageInfo | StageInfo


@dataclass(frozen=True)
class Removal:
    """An entry that goes, its bytes, and why."""

    path: Path
    size: int
    reason: str


@dataclass(frozen=True)
class PruneReport:
    """What a prune did; with ``dry_run``, what it would do."""

    removed: tuple[Removal, ...]
    in_use: tuple[Path, ...]
    """Entries that should go and could not be moved away because a program has them open."""
    remaining: int
    """Bytes of the entries that stay."""
    dry_run: bool

    @property
    def freed(self) -> int:
        """Bytes of the entries that went."""
        return sum(removal.size for removal in self.removed)


@dataclass(frozen=True)
class Limits:
    """What may stay. None: no limit of that kind."""

    older_than_days: float | None = None
    """Entries not used for longer go."""
    keep_latest: int | None = None
    """Of each model and GPU only this many packages stay, the last used; age does not remove those."""
    max_bytes: int | None = None
    """The last used longest ago go until the rest fits; stages before packages, since packages run without them."""


def plan(packages: Sequence[PackageInfo], stages: Sequence[StageInfo], limits: Limits, now: float) -> list[Removal]:
    """The entries to remove; invalid ones always. ``now`` in seconds since the epoch."""
    doomed: dict[Path, Removal] = {}

    def doom(entry: Entry, reason: str) -> None:
        doomed.setdefault(entry.path, Removal(entry.path, entry.size, reason))

    entries: list[Entry] = [*stages, *packages]
    for entry in entries:
        if entry.problem is not None:
            doom(entry, f"invalid: {entry.problem}")
    latest, surplus = _split_latest([package for package in packages if package.problem is None], limits.keep_latest)
    for package in surplus:
        doom(package, f"not among the last {limits.keep_latest} of {package.model} on {package.gpu}")
    if limits.older_than_days is not None:
        for entry in entries:
            if entry.path not in latest and now - entry.mtime > limits.older_than_days * _DAY:
                doom(entry, f"not used for {(now - entry.mtime) / _DAY:.0f} days")
    if limits.max_bytes is not None:
        staying = sorted(
            (entry for entry in entries if entry.path not in doomed),
            key=lambda entry: (isinstance(entry, PackageInfo), entry.mtime),
        )
        total = sum(entry.size for entry in staying)
        for entry in staying:
            if total <= limits.max_bytes:
                break
            doom(entry, f"over the limit of {limits.max_bytes} bytes")
            total -= entry.size
    return list(doomed.values())


def _split_latest(packages: Sequence[PackageInfo], count: int | None) -> tuple[set[Path], list[PackageInfo]]:
    """Paths of the ``count`` last used packages of each model and GPU, and the other packages."""
    latest: set[Path] = set()
    surplus: list[PackageInfo] = []
    if count is None:
        return latest, surplus
    ordered = sorted(packages, key=lambda package: (package.model, package.gpu, -package.mtime))
    for _, group in groupby(ordered, key=lambda package: (package.model, package.gpu)):
        members = list(group)
        latest.update(package.path for package in members[:count])
        surplus += members[count:]
    return latest, surplus
