"""Checkpoints come from strangers: nothing in them runs, nothing leads outside, and what is wrong is said in a line."""

import io
import json
import os
import pickle
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from rtgen.errors import CheckpointError  # noqa: E402
from rtgen.models.checkpoints.source import folder_files, open_checkpoint  # noqa: E402


def refused(path, pattern):
    with pytest.raises(CheckpointError, match=pattern) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def written(folder, content, name="weights.pt"):
    (folder / name).write_bytes(content)
    return folder / name


def repacked(content, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """A torch file with some of its entries changed; None drops one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return stream.getvalue()


VALID = saved({"a.weight": torch.randn(4, 5), "b": torch.randn(3).half(), "section": {"c": torch.randn(2)}, "step": 7})


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.command = f"echo > {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_sound_file_is_read_where_it_lies(tmp_path):
    shared = torch.randn(6, 4)
    content = {
        "whole": shared, "rows": shared[2:], "turned": shared.t()[1:], "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.randn(3).bfloat16()), "step": 3, "name": "x",
    }  # fmt: skip
    torch.save(content, tmp_path / "weights.pth")
    found = open_checkpoint(tmp_path / "weights.pth")
    assert found.values == {"step": 3, "name": "x"} and not found.sections
    for name, tensor in found.tensors.items():
        expected = content[name].detach()
        assert torch.equal(tensor.load(), expected) and tensor.shape == tuple(expected.shape)
        assert f"torch.{tensor.dtype}" == str(expected.dtype)
        pieces = list(tensor.pieces(5))
        assert all(len(piece) <= 5 for piece in pieces)
        assert torch.equal(torch.cat([*pieces, expected.new_zeros(0)]), expected.flatten())


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_runs_programs_does_not(tmp_path, nested):
    marker = tmp_path / "ran"
    bomb = Bomb(marker)
    torch.save({"generator": {"a": bomb}} if nested else bomb, tmp_path / "bomb.pt")
    refused(tmp_path / "bomb.pt", r"bomb\.pt holds other Python objects than tensors")
    torch.save(bomb, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", r"old\.pt is of the old torch format")
    written(tmp_path, pickle.dumps(bomb), "plain.pth")
    refused(tmp_path / "plain.pth", r"plain\.pth is of the old torch format")
    assert not marker.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(length=st.integers(0, len(VALID) - 1))
def test_a_truncated_file_is_refused(tmp_path, length):
    refused(written(tmp_path, VALID[:length]), r"weights\.pt is (not a torch checkpoint|truncated|damaged)")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=120)
@given(changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_file_is_refused_or_stays_inside_itself(tmp_path, changes):
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    file = written(tmp_path, content)
    try:
        found = open_checkpoint(file)
    except CheckpointError as error:
        assert str(error).isprintable()
        return
    for tensors in (found.tensors, *found.sections.values()):
        for tensor in tensors.values():
            assert 0 <= tensor.offset <= len(content)
            if tensor.dtype in ("float32", "float16", "bfloat16"):
                tensor.load()


def test_the_description_is_not_trusted_about_sizes(tmp_path):
    """Storages and shapes of a terabyte allocate nothing and are refused."""
    huge = repacked(VALID, lambda name, data: data[:8] if name == "data/0" else data)
    refused(written(tmp_path, huge), "'a.weight' does not lie in it")
    expanded = saved({"a": torch.zeros(1).expand(1 << 20, 1 << 20)})
    tracemalloc.start()
    refused(written(tmp_path, expanded), "'a' does not lie in it")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    refused(written(tmp_path, repacked(VALID, lambda name, data: None if name == "data/0" else data)), "is damaged")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (saved(torch.ones(3)), "holds a Tensor instead of a table"),
        (saved([torch.ones(3)]), "holds a list instead of a table"),
        (saved({"a": [torch.ones(3)]}), "'a' is a list and not a tensor"),
        (saved({"optimizer": {"state": {"a": torch.ones(3)}}}), "'state' is a dict and not a tensor"),
        (saved({3: torch.ones(3)}), "3 is not the name of a tensor"),
        (saved({"a": torch.ones(3).to_sparse()}), "weights are dense"),
        (repacked(VALID, lambda name, data: None if name == "data.pkl" else data), "not one of weights"),
        (repacked(VALID, compression=zipfile.ZIP_DEFLATED), "compressed archive"),
        (b"PK\x03\x04 and nothing else", "truncated or damaged"),
        (b"\x89PNG", "is not a torch checkpoint"),
        (b"", "is not a torch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    ],
)
def test_other_files_are_refused(tmp_path, content, pattern):
    refused(written(tmp_path, content), pattern)


def test_a_zip_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused(tmp_path / "weights.pt", "a zip archive, but not one of weights")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    refused(tmp_path / "script.pt", "script.pt is a (zip|compressed) archive")


def test_what_is_not_there_or_not_a_checkpoint_is_named(tmp_path):
    refused(tmp_path / "absent.pt", r"cannot read weights .*absent\.pt")
    refused(written(tmp_path, b"x", "weights.bin"), r"weights\.bin is not a checkpoint")
    refused(tmp_path, "there are (no safetensors|several)")


def indexed(folder, places, files):
    for name, tensors in files.items():
        save_file({tensor: torch.ones(2) for tensor in tensors}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_an_index_joins_its_files(tmp_path):
    folder = indexed(
        tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": "a", "2.safetensors": "b"}
    )
    assert open_checkpoint(folder).tensors.keys() == {"a", "b"}
    assert [file.name for file in folder_files(folder)] == [
        "model.safetensors.index.json", "1.safetensors", "2.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "../out.safetensors",
        "/out.safetensors",
        "..\\out.safetensors",
        "C:out.safetensors",
        "sub/out.safetensors",
        "..",
        "",
    ],
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    save_file({"a": torch.ones(2)}, tmp_path / "out.safetensors")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    refused(indexed(tmp_path / "in", {"a": name}, {}), "not a safetensors file of its folder")


@pytest.mark.parametrize(
    ("places", "files", "pattern"),
    [
        ({"a": "1.safetensors"}, {"1.safetensors": "ab"}, "disagree about 'b'"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": "a"}, "disagree about 'b'"),
        ({"a": "1.safetensors"}, {}, r"cannot read weights .*1\.safetensors"),
        ({"a": 1}, {}, "is not an index"),
        (["a"], {}, "is not an index"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, places, files, pattern):
    refused(indexed(tmp_path, places, files), pattern)


def test_a_folder_with_several_models_is_not_guessed_at(tmp_path):
    for name in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    refused(tmp_path, "several safetensors files and no index: one.safetensors, two.safetensors")
