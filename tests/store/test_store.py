"""Entries are made once, checked, and replaced when they are damaged."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rtgen.engine.manifest import Manifest
from rtgen.engine.package import open_package
from rtgen.errors import StoreError
from rtgen.store import atomic
from rtgen.store.keys import fields_digest
from rtgen.store.location import default_root
from rtgen.store.store import Store

KEY = fields_digest({"test": 1})
OTHER_KEY = fields_digest({"test": 2})


def make_stage(folder: Path) -> None:
    (folder / "graph").mkdir()
    (folder / "graph" / "model.onnx").write_bytes(b"graph")


def never(folder: Path) -> None:
    raise AssertionError("it was there already")


def package_maker(key: str, engine: bytes = b"engine", gpu: str = "toy-gpu") -> Callable[[Path], Manifest]:
    size = (64, 64)
    tensor = {"name": "x", "dtype": "float16", "shape": [1]}
    fields = {
        "key": key,
        "rtgen": "0.1.0",
        "model": {
            "name": "toy", "digest": "b" * 64, "frames_per_second": 16, "example_prompts": ["a pond"],
            "default_size": size, "size_step": (16, 16), "latent_channels": 16, "spatial_stride": 8,
            "temporal_stride": 4,
            "decoder": "vae", "dropped_frames": 0, "chunk": 3, "window": 9, "sink": 3, "position_limit": 1024,
            "sigmas": [1.0], "sampler": "euler",
            "rope_split": (22, 21, 21), "rope_theta": 1e4, "prompt_tokens": 32, "tokenizer": "tokenizer.json",
        },
        "target": {"gpu": gpu, "compute_capability": None, "vram_bytes": 1 << 30},
        "recipe": "fp32",
        "compiler": {"name": "onnxruntime", "version": "1.31"},
        "profiles": [{"min": size, "opt": size, "max": size}],
        "components": {"denoiser": {"file": "denoiser.engine", "inputs": [tensor], "outputs": [tensor]}},
        "memory_plan": dict.fromkeys(
            ("weights", "activations", "kv_ring", "decoder_state", "io", "context", "vram"), 1024
        ),
        "files": {},
    }  # fmt: skip

    def make(folder: Path) -> Manifest:
        (folder / "denoiser.engine").write_bytes(engine)
        (folder / "tokenizer.json").write_bytes(b"{}")
        return Manifest.model_validate(fields)

    return make


def never_package(folder: Path) -> Manifest:
    raise AssertionError("it was there already")


def temporaries(root: Path) -> list[Path]:
    return list((root / ".tmp").iterdir())


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    path = Store(tmp_path).stage("onnx", KEY, make_stage)
    assert path == tmp_path / ".stages" / "onnx" / KEY
    assert (path / "graph" / "model.onnx").read_bytes() == b"graph"
    assert Store(tmp_path).stage("onnx", KEY, never) == path
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "graph" / "model.onnx").write_bytes(b"gra"),
        lambda path: (path / "graph" / "model.onnx").unlink(),
        lambda path: (path / "surplus").write_bytes(b""),
        lambda path: (path / "stage.json").write_text('{"schema_version": "rtgen.stage/1", "files": 3}'),
        lambda path: (path / "stage.json").write_bytes(b"[" * 10_000),
        lambda path: (path / "stage.json").unlink(),
    ],
)
def test_a_damaged_stage_is_made_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store = Store(tmp_path)
    damage(store.stage("onnx", KEY, make_stage))
    assert store.stages()[0].problem is not None
    path = store.stage("onnx", KEY, make_stage)
    assert sorted(child.name for child in path.iterdir()) == ["graph", "stage.json"]
    assert store.stages()[0].problem is None
    assert temporaries(tmp_path) == []


def test_a_package_is_made_once_and_verified_on_every_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path, cached = store.package("toy", "toy-gpu", KEY, package_maker(KEY))
    assert (path, cached) == (tmp_path / "toy" / "toy-gpu" / KEY, False)
    assert open_package(path).manifest.key == KEY
    assert store.package("toy", "toy-gpu", KEY, never_package) == (path, True)
    (path / "denoiser.engine").write_bytes(b"enginE")  # same size: only the hash tells
    assert store.package("toy", "toy-gpu", KEY, package_maker(KEY)) == (path, False)
    assert (path / "denoiser.engine").read_bytes() == b"engine"
    assert store.find_package("toy", "toy-gpu", KEY) == path
    assert store.find_package("toy", "toy-gpu", OTHER_KEY) is None


def test_a_manifest_of_another_entry_is_not_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="manifest is of"):
        store.package("toy", "toy-gpu", KEY, package_maker(OTHER_KEY))
    assert store.packages() == []
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("name", ["..", "../up", "a/b", "C:", ".tmp", "", "a\\b"])
def test_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="cannot name"):
        store.stage(name, KEY, never)
    with pytest.raises(ValueError, match="cannot name"):
        store.package(name, "gpu", KEY, never_package)
    with pytest.raises(ValueError, match="64 hexadecimal"):
        store.find_package("toy", "gpu", name)


def test_a_bundled_stage_is_used_and_not_written(tmp_path: Path) -> None:
    published = Store(tmp_path / "made").stage("onnx", KEY, make_stage)
    bundle = published.parent.parent.rename(tmp_path / "bundle")
    before = (bundle / "onnx" / KEY).stat().st_mtime_ns
    store = Store(tmp_path / "store", bundled=[bundle])
    assert store.stage("onnx", KEY, never) == bundle / "onnx" / KEY
    assert (bundle / "onnx" / KEY).stat().st_mtime_ns == before
    assert not (tmp_path / "store").exists()
    assert store.stage("onnx", OTHER_KEY, make_stage).is_relative_to(tmp_path / "store")


def test_a_waiting_build_says_so_and_takes_the_result(tmp_path: Path) -> None:
    started, waiting, paths = threading.Event(), threading.Event(), []

    def slow(folder: Path) -> None:
        started.set()
        assert waiting.wait(10)
        make_stage(folder)

    builder = threading.Thread(target=lambda: paths.append(Store(tmp_path).stage("onnx", KEY, slow)))
    builder.start()
    assert started.wait(10)
    paths.append(Store(tmp_path).stage("onnx", KEY, never, on_wait=waiting.set))
    builder.join()
    assert waiting.is_set()
    assert paths[0] == paths[1]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_a_failed_or_interrupted_build_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    store = Store(tmp_path)

    def make(folder: Path) -> None:
        make_stage(folder)
        raise failure

    with pytest.raises(failure):
        store.stage("onnx", KEY, make)
    assert temporaries(tmp_path) == []
    assert store.stages() == []
    store.stage("onnx", KEY, make_stage)


def test_a_full_disk_while_building_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(folder: Path) -> None:
        (folder / "half").write_bytes(b"0" * (3 << 20))
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("serialization failed") from error

    with pytest.raises(StoreError, match=r"the disk is full: .*more than 3\.0 MiB are needed, .* are free") as failed:
        store.stage("onnx", KEY, make)
    assert failed.value.hint is not None
    assert "rtgen cache prune" in failed.value.hint
    assert temporaries(tmp_path) == []
    assert store.stages() == []


@pytest.mark.parametrize("step", ["write_bytes", "_sync_tree", "rename"])
def test_a_full_disk_while_publishing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = Store(tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, step, fail)
        with pytest.raises(StoreError, match="the disk is full"):
            store.stage("onnx", KEY, make_stage)
    assert temporaries(tmp_path) == []
    assert store.stages() == []
    store.stage("onnx", KEY, make_stage)


def test_other_errors_of_a_build_are_its_own(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "missing").read_bytes()

    with pytest.raises(FileNotFoundError):
        Store(tmp_path).stage("onnx", KEY, make)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_bytes(b"")
    store = Store(root)
    with pytest.raises(StoreError, match="cannot write to the store") as failed:
        store.stage("onnx", KEY, never)
    assert str(root) in failed.value.message
    assert "RTGEN_STORE" in (failed.value.hint or "")
    with pytest.raises(StoreError, match="cannot read the store"):
        store.packages()


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="can write everywhere")
def test_a_read_only_root_serves_what_it_has(tmp_path: Path) -> None:
    path = Store(tmp_path).stage("onnx", KEY, make_stage)
    tmp_path.chmod(0o500)
    (tmp_path / ".locks").chmod(0o500)
    try:
        assert Store(tmp_path).stage("onnx", KEY, never) == path
        with pytest.raises(StoreError, match="cannot write to the store"):
            Store(tmp_path).stage("onnx", OTHER_KEY, never)
    finally:
        tmp_path.chmod(0o700)
        (tmp_path / ".locks").chmod(0o700)


def test_listing_shows_broken_packages_and_ignores_foreign_folders(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.packages() == []
    assert store.size() == 0
    store.package("toy", "toy-gpu", KEY, package_maker(KEY))
    broken, _ = store.package("toy", "toy-gpu", OTHER_KEY, package_maker(OTHER_KEY))
    (broken / "denoiser.engine").write_bytes(b"eng")
    (tmp_path / "photos" / "2024" / "summer").mkdir(parents=True)
    problems = {package.key: package.problem for package in store.packages()}
    assert problems == {KEY: None, OTHER_KEY: "'denoiser.engine' is truncated: it has 3 of 6 bytes"}
    assert store.size() == sum(package.size for package in store.packages()) > 0
    for package in store.packages():
        store.remove(package)
    assert store.packages() == []
    assert temporaries(tmp_path) == []
    assert (tmp_path / "photos" / "2024" / "summer").is_dir()


def test_read_only_files_are_removed_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path, _ = store.package("toy", "toy-gpu", KEY, package_maker(KEY))
    (path / "denoiser.engine").chmod(0o400)
    path.chmod(0o500)
    store.remove(store.packages()[0])
    assert not path.exists()
    assert temporaries(tmp_path) == []


def test_prune_applies_limits_on_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, _ = store.package("toy", "toy-gpu", KEY, package_maker(KEY))
    new, _ = store.package("toy", "toy-gpu", OTHER_KEY, package_maker(OTHER_KEY))
    stage = store.stage("onnx", KEY, make_stage)
    long_ago = time.time() - 40 * 86_400
    os.utime(old, (long_ago, long_ago))
    planned = store.prune(older_than_days=30, dry_run=True)
    assert [removal.path for removal in planned.removed] == [old]
    assert old.exists()
    done = store.prune(older_than_days=30)
    assert (done.removed, done.freed, done.remaining) == (planned.removed, planned.freed, store.size())
    assert not old.exists()
    assert new.exists()
    assert stage.exists()
    store.prune(max_bytes=0)
    assert store.size() == 0


def test_using_a_package_keeps_it_young(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path, _ = store.package("toy", "toy-gpu", KEY, package_maker(KEY))
    os.utime(path, (0, 0))
    store.find_package("toy", "toy-gpu", KEY)
    assert store.prune(older_than_days=1).removed == ()


def test_the_default_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTGEN_STORE", str(tmp_path))
    assert default_root() == tmp_path
    assert Store().root == tmp_path
    monkeypatch.delenv("RTGEN_STORE")
    assert default_root().name in ("engines", "rtgen")
