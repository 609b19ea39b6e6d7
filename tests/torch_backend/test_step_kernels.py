"""Kernels between the products: they compile for every GPU without spills, and are given what they take."""

import re

import pytest

torch = pytest.importorskip("torch")

from rtgen.config.locate import data_directory  # noqa: E402
from rtgen.config.model import DenoiserConfig  # noqa: E402
from rtgen.plugins.compiler import compile_kernel  # noqa: E402
from rtgen.plugins.loader import Pointer  # noqa: E402
from rtgen.torch_backend import step_kernels  # noqa: E402
from rtgen.torch_backend.fp8_linear import CAPABILITY  # noqa: E402
from rtgen.torch_backend.step_kernels import KernelSteps, is_served, source_of  # noqa: E402

WAN = DenoiserConfig(dim=1536, layers=30, heads=12, ffn_dim=8960)
SMALL = DenoiserConfig(dim=48, layers=1, heads=2, ffn_dim=64)
TOKENS, FRAMES = 12, 3


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("config", [WAN, SMALL])
def test_they_compile_without_spills(config, capability):
    resources = compile_kernel(source_of(config, capability), "{}.{}".format(*capability)).resources
    halves = {"norm_halves", "merge_halves", "gelu_halves", "heads", "rms"}
    codes = {"norm_codes", "merge_codes", "gelu_codes"} if capability >= CAPABILITY else set()
    assert set(resources) == halves | codes
    assert all(found.spill_stores == found.spill_loads == 0 for found in resources.values())


class Recorder:
    """Stands in for the kernels on a GPU."""

    def __init__(self):
        self.calls = []

    def launch(self, stream, source, entry, grid, block, *arguments):
        self.calls.append((source, entry, grid, block, arguments))


@pytest.fixture
def launched(monkeypatch):
    """All steps of a small model, as they are launched."""
    recorder = Recorder()
    monkeypatch.setattr(step_kernels, "current_kernels", lambda sources: recorder)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 7}))
    steps = KernelSteps(SMALL, (8, 9))
    x, half = torch.zeros(TOKENS, 48), torch.zeros(TOKENS, 48, dtype=torch.float16)
    parts, gain, step = torch.zeros(FRAMES, 6, 48), torch.zeros(48), torch.ones(())
    for scale in (None, step):
        steps.norm(x, None, None, parts[:, 1], parts[:, 0], scale, 1e-6)
        steps.norm(x, half, parts[:, 2], gain, gain, scale, 1e-6)
        steps.merge(torch.zeros(1, 2, TOKENS, 24, dtype=torch.float16), scale)
        steps.gelu(torch.zeros(TOKENS, 64, dtype=torch.float16), scale)
    steps.heads((half, half, half), (gain, gain), torch.zeros(TOKENS, 12, 2), 1e-6)
    steps.rms(half, gain, 1e-6)
    steps.encode(half, step)
    return recorder.calls


def test_they_are_given_what_they_take(launched):
    text = (data_directory("plugins") / "denoiser_steps.cu").read_text(encoding="utf-8")
    assert {entry for _, entry, *_ in launched} == set(re.findall(r'extern "C" __global__[^{]*?(\w+)\(\n', text))
    for _, entry, grid, block, arguments in launched:
        (taken,) = re.findall(rf'extern "C" __global__[^{{]*?\b{entry}\(([^)]*)\)', text)
        kinds = [Pointer if "*" in part else float if "float" in part else int for part in taken.split(",")]
        assert [type(argument) for argument in arguments] == kinds, entry
        assert (grid[0], block) == ((1, 256) if entry.startswith("gelu") else (TOKENS, 32))


def test_frames_and_rows_are_told_apart(launched):
    norms = [arguments for _, entry, _, _, arguments in launched if entry.startswith("norm")]
    # tokens of a frame, numbers between the gates of frames, and between their factors
    assert [arguments[7:10] for arguments in norms] == [(4, 0, 288), (4, 288, 0)] * 2


def test_models_of_odd_widths_have_no_kernels():
    assert is_served(WAN) and is_served(SMALL)
    assert not is_served(SMALL.model_copy(update={"dim": 36}))  # heads of 18
