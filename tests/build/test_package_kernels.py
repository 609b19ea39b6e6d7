"""The kernels of a package: compiled for its GPU, what its graphs ask for and nothing else, and part of its key."""

import json

import pytest

pytest.importorskip("cuda.core")

from rtgen.build import kernels
from rtgen.build.kernels import USES, compile_kernels, sources, write_uses
from rtgen.engine.manifest import MANIFEST_NAME
from rtgen.engine.package import list_files, write_manifest
from rtgen.errors import BuildError
from rtgen.plugins import compiler
from rtgen.plugins.base import KernelSource, Plugin
from rtgen.plugins.cubins import read_cubins
from rtgen.progress import SilentProgress
from tests.cli.conftest import manifest

CODE = 'extern "C" __global__ void fill(float* y) { y[threadIdx.x] = VALUE; }'
CUDA_MACHINE = 190
"""``e_machine`` of an ELF file for NVIDIA GPUs."""


class Fill:
    def sources(self, attributes, compute_capability):
        tiles = (64,) if compute_capability == "7.5" else (64, 128)
        return tuple(KernelSource("fill.cu", (("VALUE", attributes["value"]), ("TILE", tile))) for tile in tiles)


class Use:
    def __init__(self, **attributes):
        self.plugin, self.attributes = "Fill", attributes


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """A folder of graphs that ask for the plugin's kernel with two sets of attributes, one of them twice."""
    (tmp_path / "fill.cu").write_text(CODE, encoding="utf-8")
    monkeypatch.setattr(compiler, "data_directory", lambda name: tmp_path)
    monkeypatch.setitem(kernels.PLUGINS, "Fill", Plugin("Fill", (), ("y",), "", {"value": 0}, Fill()))
    folder = tmp_path / "graphs"
    folder.mkdir()
    write_uses(folder, [Use(value=2), Use(value=1), Use(value=2)])
    return folder


def test_a_package_holds_each_kernel_that_its_graphs_ask_for_once(graphs, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    folder = compile_kernels(graphs, "8.9", package, SilentProgress())
    names = ["fill-value1-tile128", "fill-value1-tile64", "fill-value2-tile128", "fill-value2-tile64"]
    cubins = read_cubins(sorted(folder.iterdir()))
    assert list(cubins) == names
    for code in cubins.values():
        assert code[:4] == b"\x7fELF" and int.from_bytes(code[18:20], "little") == CUDA_MACHINE
    for name in ("denoiser.onnx", "denoiser.data", "tokenizer.json"):
        (package / name).touch()
    files = write_manifest(package, manifest()).files
    assert [name for name in files if name.startswith("kernels/")] == [f"kernels/{name}.cubin" for name in names]
    assert set(list_files(package)) == {*files, MANIFEST_NAME}


def test_each_gpu_gets_its_own(graphs):
    assert [source.name for source in sources(graphs, "7.5")] == ["fill-value1-tile64", "fill-value2-tile64"]


def test_what_graphs_ask_for_does_not_depend_on_the_order_of_their_nodes(graphs, tmp_path):
    before = (graphs / USES).read_bytes()
    write_uses(graphs, [Use(value=1), Use(value=2)])
    assert (graphs / USES).read_bytes() == before
    assert json.loads(before) == [{"plugin": "Fill", "attributes": {"value": value}} for value in (1, 2)]


def test_nothing_is_written_where_there_are_no_plugins(graphs, tmp_path):
    write_uses(graphs, [])
    assert not compile_kernels(graphs, "8.9", tmp_path / "graphs", SilentProgress()).exists()


def test_a_source_that_does_not_compile_is_named(graphs, tmp_path):
    (tmp_path / "fill.cu").write_text("a slip of the pen", encoding="utf-8")
    compiler.compile_kernel.cache_clear()
    with pytest.raises(BuildError, match=r"plugins/fill\.cu does not compile for sm_89"):
        compile_kernels(graphs, "8.9", tmp_path, SilentProgress())
