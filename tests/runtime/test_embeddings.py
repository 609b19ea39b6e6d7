"""The cache of encoded prompts: what was put in comes out, and whatever is wrong with it costs time only."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.runtime.embeddings import EmbeddingCache, default_folder, embedding_key
from rtgen.runtime.prompt import Encoded

SHAPE, KEY = (1, 12, 8), "ab" * 32


def context(words, seed=0):
    found = np.zeros(SHAPE, np.float32)
    found[0, :words] = np.random.default_rng(seed).standard_normal((words, SHAPE[2]))
    return found


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "embeddings", files=4)


@pytest.fixture
def stored(cache, tmp_path):
    cache.put(KEY, context(5))
    (file,) = (tmp_path / "embeddings").iterdir()
    return file


@pytest.mark.parametrize("words", [0, 1, 5, 12])
def test_what_was_put_in_comes_out_and_padding_takes_no_room(cache, tmp_path, words):
    cache.put(KEY, context(words))
    assert np.array_equal(cache.get(KEY, SHAPE), context(words))
    (file,) = (tmp_path / "embeddings").iterdir()
    assert file.stat().st_size == 32 + words * 8 * 4
    assert cache.get("cd" * 32, SHAPE) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-32],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: bytes(40),
        lambda content: content + bytes(32),
        lambda content: content * 100,
    ],
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(cache, stored, damage):
    stored.write_bytes(damage(stored.read_bytes()))
    assert cache.get(KEY, SHAPE) is None
    cache.put(KEY, context(5))
    assert np.array_equal(cache.get(KEY, SHAPE), context(5))


@given(content=st.binary(max_size=600))
def test_no_content_is_taken_for_an_embedding(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("cache")
    (folder / f"{KEY}.embedding").write_bytes(content)
    assert EmbeddingCache(folder).get(KEY, SHAPE) is None


def test_an_embedding_of_another_width_is_not_taken(cache, stored):
    assert cache.get(KEY, (1, 12, 7)) is None
    assert cache.get(KEY, (1, 4, 8)) is None


def test_the_least_recently_used_go_first(cache, tmp_path):
    keys = [f"{number:064x}" for number in range(7)]
    for age, key in enumerate(keys[:4]):
        cache.put(key, context(1))
        os.utime(tmp_path / "embeddings" / f"{key}.embedding", (1000 + age, 1000 + age))
    assert cache.get(keys[0], SHAPE) is not None  # used again
    for key in keys[4:]:
        cache.put(key, context(1))
    assert [key for key in keys if cache.get(key, SHAPE) is not None] == [keys[0], *keys[4:]]
    assert not list((tmp_path / "embeddings").glob("*.tmp"))


def test_a_folder_that_cannot_be_made_only_skips_the_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache(tmp_path / "file" / "embeddings")
    cache.put(KEY, context(3))
    assert cache.get(KEY, SHAPE) is None


def test_a_file_that_cannot_be_replaced_leaves_nothing_unfinished(cache, tmp_path):
    (tmp_path / "embeddings" / f"{KEY}.embedding").mkdir(parents=True)
    cache.put(KEY, context(3))
    assert cache.get(KEY, SHAPE) is None
    assert [path.name for path in (tmp_path / "embeddings").iterdir()] == [f"{KEY}.embedding"]


def test_a_key_depends_on_the_model_and_on_every_token():
    def tokens(ids, words):
        mask = np.arange(4)[None] < words
        return Encoded(np.array([ids], np.int64), mask.astype(np.int64), ())

    keys = [
        embedding_key(digest * 32, tokens(ids, words))
        for digest in ("00", "01")
        for ids in ([1, 2, 3, 0], [1, 3, 2, 0])
        for words in (3, 4)
    ]
    assert len(set(keys)) == 8 and all(len(key) == 64 for key in keys)


def test_the_folder_is_the_one_that_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("RTGEN_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "embeddings"
    monkeypatch.delenv("RTGEN_CACHE")
    assert default_folder().name == "embeddings" and "rtgen" in Path(default_folder()).parts[-2]
