"""The index of a safetensors file: files come from strangers, and nothing in them may lead outside."""

import json
import tracemalloc
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtgen.errors import CheckpointError
from rtgen.models.safetensors_index import DTYPES, read_index

safetensors = pytest.importorskip("safetensors.numpy")

shared_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((4,), np.float16)}
VALID = safetensors.save(TENSORS, metadata={"format": "pt"})


def written(path, content):
    file = path / "weights.safetensors"
    file.write_bytes(content)
    return file


def with_header(header, data=b"\0" * 32):
    """A file around a header, which is a JSON text or something to make one of."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def assert_inside(file, index):
    size = file.stat().st_size
    spans = sorted((tensor.offset, tensor.offset + tensor.length) for tensor in index.values())
    assert all(8 <= begin <= end <= size for begin, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    for tensor in index.values():
        items = dict(DTYPES.values())
        assert tensor.length == prod(tensor.shape) * items[tensor.dtype] and min(tensor.shape, default=0) >= 0


def test_a_valid_file_reads_as_safetensors_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {
        "matrix": torch.randn(3, 5), "half": torch.randn(7).half(), "brain": torch.randn(2, 2).bfloat16(),
        "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4),
    }  # fmt: skip
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    index = read_index(file)
    assert index.keys() == tensors.keys()
    content = file.read_bytes()
    for name, tensor in tensors.items():
        place = index[name]
        assert f"torch.{place.dtype}" == str(tensor.dtype) and place.shape == tuple(tensor.shape)
        raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8)
        assert content[place.offset : place.offset + place.length] == raw.tobytes()


@shared_path
@given(length=st.integers(0, len(VALID) - 1))
def test_a_truncated_file_is_refused(tmp_path, length):
    with pytest.raises(CheckpointError):
        read_index(written(tmp_path, VALID[:length]))


@shared_path
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, len(VALID) - 41),
            st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789-"[]{},e.')),
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_a_changed_header_is_refused_or_stays_inside_the_file(tmp_path, changes):
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    file = written(tmp_path, content)
    try:
        assert_inside(file, read_index(file))
    except CheckpointError as error:
        assert str(error).isprintable()


numbers = st.one_of(
    st.integers(-10, 40), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400, 1.5, True, None, "1"])
)
odd = st.fixed_dictionaries(
    {}, optional={"dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "", None, ["F32"]]),
                  "shape": st.one_of(st.lists(numbers, max_size=3), numbers),
                  "data_offsets": st.one_of(st.lists(numbers, max_size=3), numbers)},
)  # fmt: skip


@shared_path
@given(header=st.dictionaries(st.text(max_size=3), st.one_of(odd, numbers, st.just(entry())), max_size=3))
def test_odd_entries_are_refused_or_stay_inside_the_file(tmp_path, header):
    file = written(tmp_path, with_header(header))
    try:
        assert_inside(file, read_index(file))
    except CheckpointError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        with_header({"a": entry(0, 8), "b": entry(4, 12)}),
        with_header({"a": entry(0, 32, (8,)), "b": entry(8, 16), "c": entry(20, 28)}),
        with_header({"a": entry(-8, 0)}),
        with_header({"a": entry(8, 0)}),
        with_header({"a": entry(0, 40, (10,))}),
        with_header({"a": entry(2**63, 2**63 + 8)}),
        with_header({"a": entry(0, 8, (-1, -2))}),
        with_header({"a": entry(0, 8, (2**40, 2**40, 0, 1))}),
        with_header({"a": entry(0, 8, (3,))}),
        with_header({"a": entry(dtype="F8_E4M3")}),
        with_header({"a": 7}),
        with_header([1, 2]),
        with_header({"a\n\x1b[31m": entry(0, 40, (10,))}),
        with_header({"a\n\x1b[31m": {}}),
        with_header(b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}'),
        with_header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}'),
        with_header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}'),
        with_header(b"[" * 100_000),
        with_header(b"\xff\xfe{}"),
        with_header(b""),
        b"",
        b"1234567",
    ],
    ids=lambda content: repr(content[8:60]),
)
def test_inconsistent_headers_are_refused_in_one_line(tmp_path, content):
    with pytest.raises(CheckpointError) as caught:
        read_index(written(tmp_path, content))
    assert "weights.safetensors" in str(caught.value) and str(caught.value).isprintable()


def test_a_huge_header_length_is_refused_without_reading(tmp_path):
    file = tmp_path / "weights.safetensors"
    with file.open("wb") as stream:
        stream.truncate(300_000_000)  # sparse: takes no room
        stream.seek(0)
        stream.write((200_000_000).to_bytes(8, "little"))
    tracemalloc.start()
    try:
        for claim in (200_000_000, 2**63, 2**64 - 1):
            with file.open("r+b") as stream:
                stream.write(claim.to_bytes(8, "little"))
            with pytest.raises(CheckpointError):
                read_index(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        read_index(tmp_path / "absent.safetensors")


def test_bytes_are_read_only_where_codes_are_expected(tmp_path):
    file = written(tmp_path, safetensors.save(TENSORS | {"codes": np.arange(6, dtype=np.uint8).reshape(2, 3)}))
    with pytest.raises(CheckpointError, match="'codes' is not one rtgen can read"):
        read_index(file)
    index = read_index(file, codes=True)
    assert index.keys() == TENSORS.keys() | {"codes"}
    assert (index["codes"].dtype, index["codes"].shape, index["codes"].length) == ("uint8", (2, 3), 6)
