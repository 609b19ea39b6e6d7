"""The engine package on disk: a folder with a manifest, opened only after its manifest and every hash verify.

``manifest.json`` holds the fields of :class:`rtgen.engine.manifest.Manifest` and, beside them, ``manifest_sha256``: the
sha256 of the same JSON without that line. The file must be byte for byte what :func:`write_manifest` writes, so a
change anywhere in it is found. The hashes guard against accidents; they are no signature.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rtgen.engine.manifest import MANIFEST_NAME, FileEntry, Manifest
from rtgen.errors import PackageInvalidError
from rtgen.progress import Progress, SilentProgress

MANIFEST_LIMIT = 4 << 20
"""Bytes; a manifest is a few KiB, so that anything larger is something else."""

_SCHEMA = "rtgen.package/1"
_DIGEST = "manifest_sha256"
_CHUNK = 4 << 20
_KEY = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"(kernels/)?[A-Za-z0-9][A-Za-z0-9._-]*")
# Windows opens devices under these names, with any extension and in any folder.
_DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul"] + [f"{port}{number}" for port in ("com", "lpt") for number in range(10)]
)


@dataclass(frozen=True)
class Package:
    """A verified package."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Where a file of the package is. Raises PackageInvalidError for a name the manifest does not list."""
        if name not in self.manifest.files:
            raise invalid(self.path, f"its manifest lists no file {name!r}")
        return member_path(self.path, name)


def open_package(path: Path, progress: Progress | None = None) -> Package:
    """Verify a package and open it. Raises PackageInvalidError."""
    return Package(path, verify(path, progress=progress))


def read_manifest(path: Path) -> Manifest:
    """Read ``manifest.json`` of the package folder ``path``; the other files are not looked at.

    Raises PackageInvalidError when it is missing, too large, edited, not a manifest, of another version of the format,
    or names a file that cannot be one of the package.
    """
    data = _parse(path, _read_bytes(path))
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise invalid(path, f"{MANIFEST_NAME} is not valid: {where!r}: {first['msg']}") from error
    _check_names(path, manifest)
    return manifest


def verify(path: Path, manifest: Manifest | None = None, progress: Progress | None = None) -> Manifest:
    """Check that a package holds exactly the files of its manifest, and the sha256 of each; return the manifest.

    Raises PackageInvalidError that names the first file at fault and what is wrong with it.
    """
    manifest = manifest or read_manifest(path)
    progress = progress or SilentProgress()
    check_files(path, manifest)
    total, done = sum(entry.size for entry in manifest.files.values()), 0
    for name, entry in sorted(manifest.files.items()):
        digest = hashlib.sha256()
        with _reading(path), member_path(path, name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress.update("verify", min(done / total, 1.0), name if done < total else "")
        if digest.hexdigest() != entry.sha256:
            raise invalid(path, f"{name!r} was changed: its sha256 differs from the manifest's")
    return manifest


def check_files(path: Path, manifest: Manifest) -> None:
    """The cheap part of :func:`verify`: names and sizes, no hashes. Raises PackageInvalidError."""
    with _reading(path):
        found = list_files(path)
    for name, size in sorted(found.items()):
        if size is None:
            raise invalid(path, f"{name!r} is a link or a special file; a package holds plain files only")
        if name != MANIFEST_NAME and name not in manifest.files:
            raise invalid(path, f"{name!r} does not belong to the package")
    for name, entry in sorted(manifest.files.items()):
        size = found.get(name)
        if size is None:
            raise invalid(path, f"{name!r} is missing")
        if size < entry.size:
            raise invalid(path, f"{name!r} is truncated: it has {size} of {entry.size} bytes")
        if size > entry.size:
            raise invalid(path, f"{name!r} was changed: it has {size} bytes instead of {entry.size}")


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` for the files that are in ``folder``; what ``manifest.files`` held is replaced.

    The bytes depend on the manifest and the files alone. Returns the manifest with ``files`` filled in.
    Raises PackageInvalidError when a component names a file that is not there, or a file has an unusable name.
    """
    sizes = list_files(folder)
    sizes.pop(MANIFEST_NAME, None)
    files = {name: _file_entry(folder, name, size) for name, size in sizes.items()}
    complete = manifest.model_copy(update={"files": files})
    (folder / MANIFEST_NAME).write_bytes(_render(complete.model_dump(mode="json")))
    return read_manifest(folder)


def member_path(folder: Path, name: str) -> Path:
    """Where the file ``name`` of a package is.

    Raises PackageInvalidError for a name that, on any operating system, could lead out of the folder or to a device.
    """
    stem = name.rpartition("/")[2].partition(".")[0].lower()
    if not _FILE_NAME.fullmatch(name) or name.endswith(".") or stem in _DEVICE_NAMES:
        raise invalid(folder, f"{name!r} is not the name of a file of a package")
    return folder.joinpath(*name.split("/"))


def list_files(folder: Path) -> dict[str, int | None]:
    """Sizes in bytes of all files under ``folder``, by relative POSIX path; None for what is not a plain file.

    Links (and junctions) are listed and never followed. A folder that does not exist has no files.
    """
    sizes: dict[str, int | None] = {}
    pending = [folder]
    while pending:
        try:
            children = sorted(pending.pop().iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        for child in children:
            try:
                status = child.lstat()
            except FileNotFoundError:
                continue
            # A junction looks like a folder to lstat; only this Windows attribute tells.
            if getattr(status, "st_file_attributes", 0) & getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0):
                sizes[child.relative_to(folder).as_posix()] = None
            elif stat.S_ISDIR(status.st_mode):
                pending.append(child)
            else:
                plain = stat.S_ISREG(status.st_mode)
                sizes[child.relative_to(folder).as_posix()] = status.st_size if plain else None
    return sizes


def invalid(path: Path, problem: str) -> PackageInvalidError:
    """The error for a package with this problem; the hint leads to a fresh one."""
    if _KEY.fullmatch(path.name):
        hint = (
            f"rtgen engine rm {path.name}, then rtgen build --model {path.parent.parent.name} --gpu {path.parent.name}"
        )
    else:
        hint = "remove the folder, then make the package again with rtgen build"
    return PackageInvalidError(f"{path}: {problem}", hint=hint)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise invalid(path, f"it cannot be read: {error}") from error


def _file_entry(folder: Path, name: str, size: int | None) -> FileEntry:
    if size is None:
        raise invalid(folder, f"{name!r} is a link or a special file; a package holds plain files only")
    with member_path(folder, name).open("rb") as file:
        return FileEntry(size=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _read_bytes(path: Path) -> bytes:
    file = path / MANIFEST_NAME
    try:
        plain = stat.S_ISREG(os.lstat(file).st_mode)
        if plain:
            with file.open("rb") as stream:
                content = stream.read(MANIFEST_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise invalid(path, f"not an engine package: there is no {MANIFEST_NAME}") from error
    except OSError as error:
        raise invalid(path, f"{MANIFEST_NAME} cannot be read: {error.strerror}") from error
    if not plain:
        raise invalid(path, f"{MANIFEST_NAME} is not a plain file")
    if len(content) > MANIFEST_LIMIT:
        raise invalid(path, f"{MANIFEST_NAME} is larger than {MANIFEST_LIMIT} bytes")
    return content


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    """The manifest's fields, after the checks that come before the schema."""
    try:
        data: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise invalid(path, f"{MANIFEST_NAME} is not JSON") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, str) or not version.startswith("rtgen.package/"):
        raise invalid(path, f"{MANIFEST_NAME} is not the manifest of an engine package")
    if version != _SCHEMA:
        raise invalid(path, f"the package has format {version!r}, and this rtgen reads {_SCHEMA!r}")
    data.pop(_DIGEST, None)
    try:
        intact = content == _render(data)
    except (ValueError, RecursionError):  # NaN, which Python reads and no manifest holds
        intact = False
    if not intact:
        raise invalid(path, f"{MANIFEST_NAME} was changed: its sha256 differs")
    return dict(data)


def _render(data: dict[str, Any]) -> bytes:
    """Canonical JSON of a manifest, with its digest added."""

    def dump(value: dict[str, Any]) -> bytes:
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    return dump({**data, _DIGEST: hashlib.sha256(dump(data)).hexdigest()})


def _check_names(path: Path, manifest: Manifest) -> None:
    """Every name is safe on every operating system, and every file that is used is listed."""
    for name in manifest.files:
        member_path(path, name)
    folded = [name.lower() for name in manifest.files]
    if len(set(folded)) < len(folded) or MANIFEST_NAME in folded:
        raise invalid(path, f"{MANIFEST_NAME} lists two files whose names differ only in case, or itself")
    for name in _used_files(manifest):
        if name not in manifest.files:
            raise invalid(path, f"{name!r} is used and not among the files of the package")


def _used_files(manifest: Manifest) -> Iterable[str]:
    yield manifest.model.tokenizer
    for component in manifest.components.values():
        yield component.file
        yield from component.weights
