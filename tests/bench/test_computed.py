"""Figures without a GPU: launches from the launch plan, resources from the compiler, rooflines from the configs."""

import pytest

pytest.importorskip("cuda.core")

from rtgen.bench import computed
from rtgen.bench.cases import Case, cases
from rtgen.bench.computed import compute
from rtgen.bench.instructions import count, find_disassembler
from rtgen.bench.kernels import BENCHES, plugins
from rtgen.bench.launches import Tensor, in_order, launches
from rtgen.config.load import load_gpu
from rtgen.errors import UsageError
from rtgen.plugins import compiler
from rtgen.plugins.base import KernelSource, Output, Plugin
from rtgen.plugins.loader import Pointer

SOURCE = KernelSource("scale.cu", (("THREADS", 128),))
CODE = """
extern "C" __global__ void __launch_bounds__(THREADS) scale(const float* x, float* y, int count, float factor) {
    __shared__ float tile[THREADS];
    extern __shared__ float more[];
    tile[threadIdx.x] = x[blockIdx.x * THREADS + threadIdx.x];
    __syncthreads();
    more[threadIdx.x] = tile[THREADS - 1 - threadIdx.x] * factor;
    __syncthreads();
    if (blockIdx.x * THREADS + threadIdx.x < count) y[blockIdx.x * THREADS + threadIdx.x] = more[threadIdx.x];
}
"""


class Scale:
    def sources(self, attributes, compute_capability):
        return (SOURCE,)

    def workspace(self, inputs, attributes, compute_capability):
        return 0

    def launch(self, kernels, stream, inputs, outputs, workspace, attributes):
        addresses = [tensor.address for tensor in (*inputs, *outputs)] + [workspace]
        assert len(set(addresses)) == len(addresses) and not any(address % 256 for address in addresses)
        rows, columns = outputs[0].shape
        pointers = (Pointer(inputs[0].address), Pointer(outputs[0].address))
        grid = (kernels.multiprocessors, rows, 1)
        kernels.launch(stream, SOURCE, "scale", grid, 128, *pointers, columns, attributes["factor"], shared=40 * 1024)


PLUGIN = Plugin("Scale", ("x",), ("y",), "", {"factor": 2.0}, Scale(), (Output(0, ((0, 0), (0, 1))),), ("float32",))
CASE = Case("64 rows", {"x": Tensor("float32", (64, 1000))}, {}, {"fp16": 67.7e9}, 43.2e6)


@pytest.fixture
def scale(tmp_path, monkeypatch):
    (tmp_path / "scale.cu").write_text(CODE, encoding="utf-8")
    monkeypatch.setattr(compiler, "data_directory", lambda name: tmp_path)
    monkeypatch.setattr(computed, "cases", lambda name: (CASE,))
    return PLUGIN


@pytest.mark.parametrize(
    ("gpu", "blocks_at_a_time", "share"), [("rtx4080-laptop", 2, 256 / 1536), ("rtx2080ti", 1, 128 / 1024)]
)
def test_a_launch_is_known_before_it_runs(scale, gpu, blocks_at_a_time, share):
    (found,) = compute([scale], load_gpu(gpu)).launches
    sm = load_gpu(gpu).multiprocessors
    assert (found.launch.entry, found.launch.threads, found.launch.blocks) == ("scale", 128, 64 * sm)
    assert found.shared == 40 * 1024 + 128 * 4 and 0 < found.resources.registers < 64
    assert (found.occupancy.blocks, found.occupancy.limit) == (blocks_at_a_time, "shared memory")
    assert found.occupancy.share == pytest.approx(share) and found.waves == pytest.approx(64 / blocks_at_a_time)


def test_the_roofline_is_the_longer_of_arithmetic_and_memory(scale):
    (found,) = compute([scale], load_gpu("rtx4080-laptop")).rooflines  # 67.7 TFLOP/s and 432 GB/s
    assert found.value == pytest.approx(1000) and found.unit == "us" and found.ratio is None
    assert "computed for rtx4080-laptop" in found.note and "arithmetic" in found.note
    (slower,) = compute([scale], load_gpu("rtx4050-laptop")).rooflines
    assert slower.value > found.value


def test_processors_are_refused(scale):
    with pytest.raises(UsageError, match="cpu"):
        compute([scale], load_gpu("cpu"))


def test_instructions_are_counted_by_kind_and_kernel():
    text = """
.text.first:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/                   IMMA.16832.S8.S8 R4, R8.ROW, R2.COL, R4 ;
        /*0020*/              @!P0 LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0030*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0040*/                   FFMA R3, R4, R5, R6 ;
        /*0050*/                   NOP ;
.text.second:
        /*0000*/              @P1  IMAD.WIDE R2, R3, R4, R2 ;
        /*0010*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0020*/                   STL [R1], R2 ;
"""
    first, second = count(text).values()
    assert {kind: number for kind, number in first.items() if number} == {
        "tensor": 2, "global": 1, "float": 1, "other": 1,
    }  # fmt: skip
    assert {kind: number for kind, number in second.items() if number} == {"integer": 1, "shared": 1, "local": 1}


@pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed")
def test_machine_code_is_taken_apart(scale):
    (found,) = compute([scale], load_gpu("rtx4080-laptop")).launches
    assert found.mix is not None and found.mix["global"] == 2 and found.mix["shared"] == 4 and found.mix["tensor"] == 0


@pytest.mark.parametrize(
    "plugin", [item for item in plugins(list(BENCHES)) if item.kernel is not None], ids=lambda p: p.name
)
def test_cases_fit_their_plugins(plugin):
    assert cases(plugin.name)
    for case in cases(plugin.name):
        assert tuple(case.inputs) == plugin.inputs and case.attributes.keys() <= plugin.attributes.keys()
        assert [tensor.dtype for tensor in case.inputs.values()] == list(plugin.input_types)
        assert launches(plugin, in_order(plugin, case.inputs), case.attributes, "8.9", 58)
