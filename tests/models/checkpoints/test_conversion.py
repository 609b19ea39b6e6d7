"""Conversion: exact and reproducible files, whole or absent, in a fraction of the weights' memory."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from rtgen.errors import CheckpointError  # noqa: E402
from rtgen.models.checkpoints.convert import check_source, convert  # noqa: E402
from rtgen.models.checkpoints.writer import write_file  # noqa: E402
from rtgen.models.safetensors_index import read_index  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from tests.models.checkpoints.published import converted, equal, source  # noqa: E402


class Recorder(SilentProgress):
    def __init__(self):
        self.fractions = []

    def update(self, stage, fraction, detail=""):
        assert stage == "weights: text encoder" and detail == "weights.safetensors"
        self.fractions.append(fraction)


def stored(folder, tensors):
    save_file(tensors, folder / "weights.safetensors")
    wanted = {name: tuple(value.shape) for name, value in tensors.items()}
    return source("text_encoder", folder / "weights.safetensors"), wanted


@pytest.fixture
def mixed(tmp_path):
    tensors = {
        "z": torch.randn(7, 3), "half": torch.randn(5).half(), "brain": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "a": torch.randn(40),
    }  # fmt: skip
    return tensors, *stored(tmp_path, tensors)


@pytest.mark.parametrize("dtype", ["float32", "float16", "stored"])
def test_values_order_and_bytes(tmp_path, mixed, dtype, monkeypatch):
    monkeypatch.setattr("rtgen.models.checkpoints.writer.PIECE", 4)
    tensors, found, wanted = mixed
    expected = {
        name: value if dtype == "stored" else value.to(getattr(torch, dtype)) for name, value in tensors.items()
    }
    assert equal(converted(found, wanted, tmp_path / "1", dtype), expected)
    converted(found, wanted, tmp_path / "2", dtype)
    file, again = (tmp_path / folder / "part.0.safetensors" for folder in "12")
    assert file.read_bytes() == again.read_bytes()
    places = read_index(file)
    order = list(places) if dtype == "stored" else list(wanted)
    assert order == sorted(places, key=lambda name: places[name].offset)
    assert min(place.offset for place in places.values()) % 64 == 0


def test_files_hold_what_fits_and_larger_tensors_alone(tmp_path, mixed):
    _, found, wanted = mixed
    progress = Recorder()
    files = convert("text_encoder", wanted, found, tmp_path / "out", dtype="float32", most_bytes=100, progress=progress)
    assert [file.name for file in files] == [f"text_encoder.{index}.safetensors" for index in range(3)]
    assert [set(load_file(file)) for file in files] == [{"z"}, {"half", "brain", "scalar", "empty"}, {"a"}]
    assert progress.fractions == sorted(progress.fractions) and progress.fractions[-1] == 1


def test_numbers_beyond_float16_are_refused_and_nothing_is_left(tmp_path):
    found, wanted = stored(tmp_path, {"small": torch.ones(100), "weight": torch.tensor([1.0, -65520.0])})
    with pytest.raises(CheckpointError, match="weight reaches 65520, and float16 ends at 65504") as caught:
        converted(found, wanted, tmp_path / "out", "float16", most_bytes=200)
    assert "--recipe fp32" in str(caught.value.hint)
    assert list((tmp_path / "out").iterdir()) == []
    assert converted(found, wanted, tmp_path / "out")["weight"][1] == -65520
    found, wanted = stored(tmp_path, {"weight": torch.tensor([65519.0])})
    assert converted(found, wanted, tmp_path / "fits", "float16")["weight"][0] == 65504


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, bad):
    found, wanted = stored(tmp_path, {"weight": torch.tensor([1.0, bad, 2.0])})
    with pytest.raises(CheckpointError, match="weight holds numbers that are not finite"):
        converted(found, wanted, tmp_path / "out")


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path, mixed):
    _, found, wanted = mixed
    tensors = check_source(found, wanted)
    found.path.write_bytes(found.path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="became shorter"):
        write_file(tmp_path / "out", tensors, dtype="stored", advance=lambda count: None)


MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
from rtgen.models.checkpoints.convert import convert
from rtgen.models.checkpoints.layouts import Candidate, Source
from rtgen.progress import SilentProgress
wanted = {name: tuple(shape) for name, shape in json.loads(sys.argv[2]).items()}
path = Path(sys.argv[1])
torch.ones(1).half()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = Source("denoiser", Candidate("a/b", path.name), path)
convert("denoiser", wanted, source, path.parent / "out", dtype="float16", progress=SilentProgress())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_memory_is_a_few_pieces_whatever_the_size(tmp_path, name):
    pytest.importorskip("resource")
    tensors = {"large": torch.zeros(5000, 8000), **{f"w{index}": torch.zeros(1000, 1000) for index in range(10)}}
    weights = sum(value.nbytes for value in tensors.values())
    assert weights == 200_000_000
    if name == "weights.pt":
        torch.save({"generator": tensors}, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    shapes = json.dumps({key: list(value.shape) for key, value in tensors.items()})
    command = [sys.executable, "-c", MEASURE, str(tmp_path / name), shapes]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(result.stdout) < 0.6 * weights
    assert (tmp_path / "out" / "denoiser.0.safetensors").stat().st_size > weights // 2
