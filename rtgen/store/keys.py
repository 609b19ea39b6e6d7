"""What entries of the store are named after: digests of labelled fields and of files."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

KEY_SCHEMA = 1
"""Raise it when fields change their meaning or the package format changes: entries made before are then not found."""

KEY = re.compile(r"[0-9a-f]{64}")


def fields_digest(fields: Mapping[str, JsonValue]) -> str:
    """sha256 (64 hexadecimal digits) of labelled fields; their order does not matter.

    Raises TypeError for values that JSON does not have, ValueError for NaN and infinities.
    """
    labelled = {"key_schema": KEY_SCHEMA, "fields": dict(fields)}
    text = json.dumps(labelled, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(*paths: Path) -> str:
    """sha256 over source files: names (relative to the folder they were found in) and text.

    Each path is a file or a folder, and their order matters. Line endings are normalized, so that a checkout on
    Windows and one on Linux agree; hidden files, ``__pycache__`` and links are left out. Raises FileNotFoundError.
    """
    digest = hashlib.sha256()
    for position, path in enumerate(paths):
        for name, file in sorted(_sources(path)):
            text = file.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{position}:{name}:{hashlib.sha256(text).hexdigest()}\n".encode())
    return digest.hexdigest()


def _sources(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        return [(path.name, path)]
    found: list[tuple[str, Path]] = []
    for child in path.iterdir():
        if child.name.startswith(".") or child.name == "__pycache__" or child.is_symlink():
            continue
        if child.is_dir():
            found += [(f"{child.name}/{name}", file) for name, file in _sources(child)]
        else:
            found.append((child.name, child))
    return found
