"""Encoded prompts on the disk, for text encoders that take longer than reading a file."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from rtgen.runtime.prompt import Encoded
from rtgen.runtime.session import Array

FILES: Final = 256
"""Kept at most; the least recently used go first. A long prompt of Wan 2.1 is 8 MB, a common one less than 1 MB."""
SUFFIX: Final = ".embedding"
_DIGEST_BYTES: Final = 32
_NUMBER: Final = np.dtype("<f4")


class EmbeddingCache:
    """Context vectors by model and tokens: a sha256 of what follows, then little-endian float32 rows.

    Rows of padding are zeros and left out at the end. A file that is damaged counts as absent, and a folder that cannot
    be written to as one that stays empty: encoding again is always possible.
    """

    def __init__(self, folder: Path | None = None, files: int = FILES) -> None:
        self._folder, self._files = folder or default_folder(), files

    def get(self, key: str, shape: tuple[int, ...]) -> Array | None:
        """What was stored for ``key``, float32 [1, tokens, dim] in this ``shape``, or None."""
        path = self._path(key)
        row_bytes = shape[-1] * _NUMBER.itemsize
        most = _DIGEST_BYTES + shape[1] * row_bytes
        try:
            with path.open("rb") as file:
                content = file.read(most + 1)
            os.utime(path)  # it is in use
        except OSError:
            return None
        rows, rest = divmod(len(content) - _DIGEST_BYTES, row_bytes)
        if rest or not 0 <= rows <= shape[1]:
            return None
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            return None
        context = np.zeros(shape, np.float32)
        context[0, :rows] = np.frombuffer(content, _NUMBER, offset=_DIGEST_BYTES).reshape(rows, shape[-1])
        return context

    def put(self, key: str, context: Array) -> None:
        """Store the float32 context vectors [1, tokens, dim] of ``key``."""
        used = np.flatnonzero(np.any(context[0], axis=1))
        data = context[0, : used[-1] + 1 if used.size else 0].astype(_NUMBER).tobytes()
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_whole(self._path(key), hashlib.sha256(data).digest() + data)
            self._drop_oldest()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"

    def _drop_oldest(self) -> None:
        ages = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process dropped it
                ages.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(ages)[: -self._files]:
            with contextlib.suppress(OSError):
                path.unlink()


def embedding_key(model_digest: str, tokens: Encoded) -> str:
    """The key of a prompt's context vectors: the same words of the same model have the same."""
    digest = hashlib.sha256(bytes.fromhex(model_digest))
    for array in (tokens.ids, tokens.mask):
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    return digest.hexdigest()


def default_folder() -> Path:
    """``embeddings`` in $RTGEN_CACHE, or in the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("RTGEN_CACHE") or user_cache_dir("rtgen", appauthor=False)) / "embeddings"


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is seen whole or not at all. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
