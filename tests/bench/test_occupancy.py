"""Blocks on a multiprocessor: the rules of CUDA's occupancy calculator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.bench.occupancy import multiprocessor, occupancy
from rtgen.config.load import list_gpus, load_gpu
from rtgen.errors import ConfigError

KIB = 1024


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "blocks", "share", "limit"),
    [
        ("8.0", 256, 32, 0, 8, 1.0, "threads"),
        ("8.0", 256, 128, 0, 2, 0.25, "registers"),
        ("8.0", 256, 33, 0, 6, 0.75, "registers"),  # 33 a thread are given as 40
        ("8.9", 128, 32, 48 * KIB, 2, 256 / 1536, "shared memory"),  # with 1 KiB of the system's, 49 of 100
        ("8.6", 32, 16, 0, 16, 512 / 1536, "blocks"),
        ("7.5", 128, 32, 32 * KIB, 2, 256 / 1024, "shared memory"),
        ("9.0", 384, 168, 167_024, 1, 384 / 2048, "registers"),
        ("9.0", 128, 64, 228 * KIB, 0, 0.0, "shared memory"),  # one block may have 227
        ("12.0", 1024, 64, 0, 1, 1024 / 1536, "threads"),
    ],
)
def test_known_cases(capability, threads, registers, shared, blocks, share, limit):
    held = occupancy(multiprocessor(capability), threads=threads, registers=registers, shared=shared)
    assert (held.blocks, held.limit) == (blocks, limit) and held.share == pytest.approx(share)


@given(
    capability=st.sampled_from(["7.5", "8.0", "8.6", "8.9", "9.0", "12.0"]),
    threads=st.integers(1, 1024),
    registers=st.integers(16, 255),
    shared=st.integers(0, 256 * KIB),
)
def test_what_is_held_fits_and_one_more_block_does_not(capability, threads, registers, shared):
    on = multiprocessor(capability)
    held = occupancy(on, threads=threads, registers=registers, shared=shared)
    assert 0 <= held.share <= 1
    assert held.blocks * threads <= on.threads and held.blocks <= on.blocks
    assert held.blocks * threads * registers <= on.registers
    assert held.blocks * (shared + on.reserved_kib * KIB) <= on.shared_kib * KIB
    more = held.blocks + 1
    warps = -(-threads // 32)
    assert (
        more > on.blocks
        or more * warps * 32 > on.threads
        or more * warps * 32 * -(-registers // 8) * 8 > on.registers
        or more * (shared + on.reserved_kib * KIB + 127) > on.shared_kib * KIB
        or shared > on.block_shared_kib * KIB
    )


def test_every_gpu_is_in_the_table():
    for name in list_gpus():
        if (capability := load_gpu(name).compute_capability) is not None:
            assert multiprocessor(capability).threads >= 1024
    with pytest.raises(ConfigError, match=r"6\.1"):
        multiprocessor("6.1")
