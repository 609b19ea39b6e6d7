"""Digests depend on what they should depend on, and on nothing else."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.store import digest_cache
from rtgen.store.digest_cache import DigestCache
from rtgen.store.keys import fields_digest, file_digest, tree_digest

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(fields=st.dictionaries(st.text(), values, max_size=5))
def test_the_order_of_fields_does_not_matter(fields: dict) -> None:
    assert fields_digest(fields) == fields_digest(dict(reversed(fields.items())))


def test_labels_and_types_matter() -> None:
    variants = [{"a": 1}, {"b": 1}, {"a": "1"}, {"a": True}, {"a": [1]}, {"a": None}, {"a": 1, "b": None}, {}]
    assert len({fields_digest(fields) for fields in variants}) == len(variants)


def test_values_without_one_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fields_digest({"a": float("nan")})
    with pytest.raises(TypeError):
        fields_digest({"a": Path("weights")})  # type: ignore[dict-item]


def test_source_digests_follow_names_and_text_and_not_line_endings(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "mma.cuh").write_bytes(b"a\nb\n")
    (tmp_path / "attention.cu").write_bytes(b"kernel\n")
    digest = tree_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"1")
    (tmp_path / ".attention.cu.swp").write_bytes(b"1")
    (tmp_path / "common" / "mma.cuh").write_bytes(b"a\r\nb\r\n")
    assert tree_digest(tmp_path) == digest
    (tmp_path / "attention.cu").rename(tmp_path / "attention2.cu")
    assert tree_digest(tmp_path) != digest
    with pytest.raises(FileNotFoundError):
        tree_digest(tmp_path / "nowhere")


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return file_digest(path)

    monkeypatch.setattr(digest_cache, "file_digest", counted)
    monkeypatch.setattr(digest_cache, "_CLOCK_TICK_NS", -(10**18))  # the file is new, and counts as settled
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    cache = DigestCache(tmp_path / "store" / ".digests.json")
    assert cache.digest(weights) == DigestCache(cache.path).digest(weights) == file_digest(weights)
    assert len(reads) == 1
    weights.write_bytes(b"two")
    os.utime(weights, ns=(1, 1))
    assert cache.digest(weights) == file_digest(weights)
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    cache = DigestCache(tmp_path / ".digests.json")
    cache.digest(weights)
    assert not cache.path.exists()


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b'{"x": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_cache_is_ignored(tmp_path: Path, content: bytes) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    os.utime(weights, (0, 0))
    (tmp_path / ".digests.json").write_bytes(content)
    assert DigestCache(tmp_path / ".digests.json").digest(weights) == file_digest(weights)
    assert DigestCache(tmp_path / "weights.safetensors" / "in a file").digest(weights) == file_digest(weights)
