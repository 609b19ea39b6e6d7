"""A disk that runs full while a video is written: a clear error, and the frames so far in a file that plays."""

import errno
import io
import os

import av
import numpy as np
import pytest

from rtgen.errors import OutputError
from rtgen.runtime import reserved_file
from rtgen.runtime.reserved_file import ReservedFile
from rtgen.runtime.sink import open_sink

RESERVE, CAPACITY = 1 << 18, 1 << 20


class SmallDisk(io.FileIO):
    """A file on a disk of CAPACITY bytes, some of which the reserve takes; it is filled to the last byte."""

    def write(self, data):
        room = CAPACITY - sum(path.stat().st_size for path in self.folder.iterdir())
        room += max(0, os.fstat(self.fileno()).st_size - self.tell())  # what is overwritten takes no more
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(bytes(data)[:room])


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setattr(SmallDisk, "folder", tmp_path, raising=False)
    monkeypatch.setattr(reserved_file.io, "FileIO", SmallDisk)
    monkeypatch.setattr(ReservedFile.__init__, "__defaults__", (RESERVE,))
    return tmp_path


def test_a_write_that_fits_only_in_part_is_finished_with_the_reserve(disk):
    file = ReservedFile(disk / "video")
    data = np.random.default_rng(0).bytes(CAPACITY - RESERVE // 2)
    assert file.write(data) == len(data) and file.is_full
    with pytest.raises(OSError, match="No space"):
        file.write(b"x" * RESERVE)
    file.close()
    assert (disk / "video").read_bytes()[: len(data)] == data
    assert [path.name for path in disk.iterdir()] == ["video"]


def test_other_errors_leave_the_reserve_alone(disk, monkeypatch):
    def broken(self, data):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SmallDisk, "write", broken)
    file = ReservedFile(disk / "video")
    with pytest.raises(OSError, match="Input/output"):
        file.write(b"x")
    assert not file.is_full
    file.close()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_the_frames_before_the_disk_ran_full_play(disk, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)  # does not compress
    path, taken = disk / f"clip{suffix}", 0
    sink = open_sink(str(path), frames_per_second=16, size=(64, 64))
    with pytest.raises(OutputError, match="disk is full"), sink:
        while taken < 4000:
            sink.write(noise)
            taken += len(noise)
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert 16 <= frames <= taken and path.stat().st_size > (CAPACITY - RESERVE) * 0.8
    assert [left.name for left in disk.iterdir()] == [path.name]


def test_a_disk_without_room_for_the_reserve_is_known_before_the_first_frame(tmp_path, monkeypatch):
    def full(count):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reserved_file.os, "urandom", full)
    with pytest.raises(OutputError, match="disk is full"):
        open_sink(str(tmp_path / "clip.mp4"), frames_per_second=16, size=(64, 64))
    assert not list(tmp_path.iterdir())


def test_nothing_but_the_video_is_left_of_a_sound_run(tmp_path):
    with open_sink(str(tmp_path / "clip.mp4"), frames_per_second=16, size=(64, 64)) as sink:
        sink.write(np.zeros((4, 64, 64, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
