"""Which of several packages plays a size, and which one ``rtgen run`` builds when none does."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build import plan as plan_module  # noqa: E402
from rtgen.build.lookup import find_package  # noqa: E402
from rtgen.build.plan import plan_build  # noqa: E402
from rtgen.build.walk import build  # noqa: E402
from rtgen.cli.main import run  # noqa: E402
from rtgen.config.model import ModelConfig  # noqa: E402
from rtgen.errors import MissingDependencyError  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.profiles import serve_all  # noqa: E402
from rtgen.store.store import Store  # noqa: E402

ONE, TWO, RANGE = ((48, 48),), ((32, 48), (48, 32)), ((32, 32), (48, 64))


@pytest.fixture(scope="module")
def packages(tiny_models, tiny_built, tmp_path_factory):
    """A store with packages of the tiny model for the sizes above, by what was asked for; nothing else is in it."""
    tiny, store = tiny_models["tiny"], tmp_path_factory.mktemp("lookup") / "store"
    tiny_built("tiny")
    shutil.copytree(tiny.store / ".stages", store / ".stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        return store, {
            sizes: build(tiny.request(sizes=sizes, store=store), SilentProgress()).package
            for sizes in (ONE, TWO, RANGE, ((64, 64),))
        }


@pytest.fixture
def find(tiny, packages):
    def call(size, **fields):
        found = find_package(tiny.request(**({"store": packages[0]} | fields)), size)
        return found and found.path

    return call


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((48, 48), ONE),  # exactly this size, though the range serves it too
        ((32, 48), TWO),  # one of the two that the package was built with
        ((48, 32), TWO),
        ((32, 64), RANGE),  # between its two sizes
        ((48, 64), RANGE),
        ((64, 64), ((64, 64),)),
        ((64, 48), None),  # portrait, while the range is landscape
        ((80, 80), None),
    ],
    ids=str,
)
def test_the_package_that_takes_least_and_serves_the_size_is_found(find, packages, size, sizes):
    assert find(size) == (None if sizes is None else packages[1][sizes])


def test_a_package_that_plays_several_sizes_in_one_video_serves_them_all(tiny, packages):
    store, _ = packages
    manifests = list(plan_build(tiny.request(store=store)).store.manifests("tiny", "cpu"))
    for sizes in (((32, 32), (64, 64)), ((32, 48), (48, 48)), ((32, 32), (512, 512))):
        found = find_package(tiny.request(store=store), *sizes)
        fitting = [each.key for each in manifests if serve_all(each.profiles, sizes)]
        assert found.path.name in fitting if fitting else found is None


def test_what_is_found_can_be_built_again_from_its_request(tiny, packages):
    store, built = packages
    found = find_package(tiny.request(store=store), (32, 64))
    assert plan_build(found.request).package_key == found.path.name == built[RANGE].name


def test_packages_of_other_weights_or_versions_are_not_found(find, tiny, packages, tmp_path, monkeypatch):
    weights = shutil.copytree(tiny.weights, tmp_path / "weights")
    (weights / "tokenizer.json").open("a").write(" ")
    assert find((48, 48), weights=weights) is None
    monkeypatch.setattr(plan_module, "onnxruntime_version", lambda: "99.0")
    assert find((48, 48)) is None


def test_without_an_exporter_packages_of_other_graphs_than_the_bundled_are_passed_over(find, monkeypatch):
    def nothing_installed(**_):
        raise MissingDependencyError("exporting a model needs torch, which is not installed")

    monkeypatch.setattr(plan_module, "installed_toolchain", nothing_installed)
    assert find((48, 48)) is None


def test_damaged_manifests_and_packages_of_sizes_the_model_no_longer_makes_are_passed_over(
    find, packages, tmp_path, monkeypatch
):
    store = shutil.copytree(packages[0], tmp_path / "store")
    (store / packages[1][ONE].relative_to(packages[0]) / "manifest.json").write_text("{}", encoding="utf-8")
    assert find((48, 48), store=store).name == packages[1][RANGE].name
    monkeypatch.setattr(ModelConfig, "size_step", property(lambda model: (24, 24)))
    assert find((48, 48), store=store) is None


def rtgen_run(capsys, tiny, store, *arguments):
    capsys.readouterr()
    line = ["run", "--gpu", "cpu", "--recipe", "fp32", "--model", "tiny", "--weights", str(tiny.weights)]
    line += ["--store", str(store), "--prompt", "a red kite", "--frames", "1", "--json"]
    code = run([*line, *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_rtgen_run_plays_packages_of_several_sizes_and_builds_where_none_serves(
    tiny, packages, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    store = shutil.copytree(packages[0], tmp_path / "store")
    for size, sizes in (("32x48", TWO), ("48x32", TWO), ("32x64", RANGE)):
        code, body = rtgen_run(capsys, tiny, store, "--size", size, "--no-build", "-o", f"{size}.mp4")
        assert code == 0 and body["data"]["package"].endswith(packages[1][sizes].name)
        assert body["data"]["size"] == [int(side) for side in size.split("x")]
    before = len(Store(store).packages())
    code, body = rtgen_run(capsys, tiny, store, "--size", "64x48", "--no-build")
    assert code == 3 and "serves 64x48" in body["error"]["message"]
    code, body = rtgen_run(capsys, tiny, store, "--size", "64x48")
    assert code == 0 and len(Store(store).packages()) == before + 1
    code, body = rtgen_run(capsys, tiny, store, "--size", "80x80")
    assert code == 2 and "32x32 to 64x64" in body["error"]["message"]
