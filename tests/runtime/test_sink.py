import errno
import io
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from rtgen.errors import MissingDependencyError, OutputError, SizeError, UsageError
from rtgen.runtime import writers
from rtgen.runtime.sink import Sink, open_sink

SIZE = (64, 96)


def smooth_frames(count=13):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] / 96
    waves = [np.stack((rows, columns, 0.5 + 0.4 * np.sin(rows + columns + t / 5)), axis=-1) for t in range(count)]
    return (np.asarray(waves) * 255).astype(np.uint8)


def decode(file):
    with av.open(file) as container:
        stream = container.streams.video[0]
        frames = [
            frame.to_ndarray(format="rgb24", src_colorspace="ITU709", dst_color_range="JPEG")
            for frame in container.decode(stream)
        ]
        return np.asarray(frames), stream


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def psnr(frames, expected):
    return -10 * np.log10(np.mean((frames / 255.0 - expected / 255.0) ** 2))


@pytest.mark.parametrize(("suffix", "minimum"), [(".mp4", 35), (".mkv", 35), (".webm", 33), (".gif", 25)])
def test_what_was_written_plays_back(tmp_path, suffix, minimum):
    frames, path = smooth_frames(), tmp_path / f"clip é{suffix}"
    with open_sink(str(path), frames_per_second=16, size=SIZE) as sink:
        sink.write(frames[:9])
        sink.write(frames[9:])
    decoded, stream = decode(str(path))
    assert decoded.shape == frames.shape
    assert abs(float(stream.average_rate) - 16) < 0.7  # gif counts in hundredths of a second
    assert psnr(decoded, frames) > minimum
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_of_another_size_are_scaled_into_the_video(tmp_path, suffix):
    frames, path = smooth_frames(4), tmp_path / f"clip{suffix}"
    twice = frames.repeat(2, axis=1).repeat(2, axis=2)
    square = np.full((2, 64, 64, 3), 255, np.uint8)
    with open_sink(str(path), frames_per_second=16, size=SIZE) as sink:
        for chunk in (frames, twice, square):
            sink.write(chunk)
    decoded, _ = decode(str(path))
    assert decoded.shape == (10, *SIZE, 3)
    assert psnr(decoded[4:8], frames) > 22
    assert decoded[8:, :, 20:76].min() > 200 and decoded[8:, :, :12].max() < 50 > decoded[8:, :, -12:].max()


def test_images_keep_the_size_of_their_frames(tmp_path):
    with open_sink(f"{tmp_path / 'frames'}/", frames_per_second=16, size=SIZE) as sink:
        for chunk in (smooth_frames(1), np.zeros((1, 32, 48, 3), np.uint8), smooth_frames(1)):
            sink.write(chunk)
    shapes = [decode(str(path))[0].shape[1:3] for path in sorted((tmp_path / "frames").iterdir())]
    assert shapes == [SIZE, (32, 48), SIZE]


def test_an_animated_webp_holds_every_frame_and_loops(tmp_path):
    path = tmp_path / "clip.webp"  # FFmpeg writes these and does not read them
    with open_sink(str(path), frames_per_second=16, size=SIZE) as sink:
        sink.write(smooth_frames())
    data = path.read_bytes()
    assert data.startswith(b"RIFF") and data[8:12] == b"WEBP" and data.count(b"ANMF") == len(smooth_frames())
    loops = data[data.find(b"ANIM") + 12 : data.find(b"ANIM") + 14]
    assert loops == b"\0\0"
    first = data.find(b"ANMF") + 8
    assert int.from_bytes(data[first + 12 : first + 15], "little") in (62, 63)  # milliseconds


def test_an_mp4_starts_with_its_index_and_names_its_colours(tmp_path):
    path = tmp_path / "clip.mp4"
    with open_sink(str(path), frames_per_second=16, size=SIZE) as sink:
        sink.write(smooth_frames())
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_range) == ("yuv420p", 1, 1)


def test_png_frames_are_exact_and_never_mixed_with_older_ones(tmp_path):
    frames, folder = smooth_frames(3), tmp_path / "frames"
    with open_sink(f"{folder}/", frames_per_second=16, size=SIZE) as sink:
        sink.write(frames)
    assert names(folder) == ["000000.png", "000001.png", "000002.png"]
    for index, expected in enumerate(frames):
        with av.open(str(folder / f"{index:06}.png")) as image:
            assert np.array_equal(next(image.decode(video=0)).to_ndarray(format="rgb24"), expected)
    with pytest.raises(OutputError, match="already holds frames"):
        open_sink(str(folder), frames_per_second=16, size=SIZE)


def test_stdout_is_a_matroska_stream():
    script = (
        "import numpy as np; from rtgen.runtime.sink import open_sink\n"
        "with open_sink('-', frames_per_second=16, size=(64, 96)) as sink:\n"
        "    sink.write(np.zeros((5, 64, 96, 3), 'uint8'))"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    decoded, _ = decode(io.BytesIO(done.stdout))
    assert decoded.shape == (5, 64, 96, 3)


def test_frames_made_before_an_exception_stay_playable(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt), open_sink(str(path), frames_per_second=16, size=SIZE) as sink:
        sink.write(smooth_frames(5))
        raise KeyboardInterrupt
    assert len(decode(str(path))[0]) == 5


def test_an_older_file_survives_an_abort_and_a_run_without_frames(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")
    sink = open_sink(str(path), frames_per_second=16, size=SIZE)
    sink.write(smooth_frames(5))
    sink.abort()
    open_sink(str(path), frames_per_second=16, size=SIZE).close()
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("output", "error", "match"),
    [
        ("clip.avi", UsageError, "'.avi'"),
        ("clip", UsageError, "no suffix"),
        (" ", UsageError, "no name"),
        ("missing/clip.mp4", OutputError, "no folder"),
        ("missing/frames/", OutputError, "no folder"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_made(tmp_path, monkeypatch, output, error, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match) as caught:
        open_sink(output, frames_per_second=16, size=SIZE)
    assert caught.value.hint
    assert names(tmp_path) == []


def test_odd_sizes_and_misfit_encoders_are_refused(tmp_path):
    with pytest.raises(SizeError, match="even"):
        open_sink(str(tmp_path / "clip.mp4"), frames_per_second=16, size=(63, 96))
    with pytest.raises(UsageError, match="h264_nvenc"):
        open_sink(str(tmp_path / "clip.webm"), frames_per_second=16, size=SIZE, encoder="h264_nvenc")


def test_a_missing_gpu_encoder_is_known_before_the_first_frame(tmp_path, monkeypatch):
    def fail(*_):
        raise av.error.PermissionError(1, "no driver")

    monkeypatch.setattr(writers, "_open_encoder", fail)
    with pytest.raises(MissingDependencyError, match="h264_nvenc"):
        open_sink(str(tmp_path / "clip.mp4"), frames_per_second=16, size=SIZE, encoder="h264_nvenc")
    assert names(tmp_path) == []


def test_a_video_that_cannot_take_its_name_is_kept_beside_it(tmp_path):
    path = tmp_path / "clip.mp4"
    sink = open_sink(str(path), frames_per_second=16, size=SIZE)
    sink.write(smooth_frames(5))
    path.mkdir()  # stands for a file that another program holds
    with pytest.raises(OutputError, match="cannot be replaced") as caught:
        sink.close()
    (kept,) = tmp_path.glob("clip-*.mp4")
    assert str(kept) in caught.value.hint
    assert len(decode(str(kept))[0]) == 5


def test_frames_made_before_an_encoder_error_stay_playable(tmp_path):
    path = tmp_path / "clip.mkv"
    sink = open_sink(str(path), frames_per_second=16, size=SIZE)
    sink.write(smooth_frames(5))
    sink.write(np.zeros((1, 3)))  # no frames at all
    with pytest.raises((OutputError, ValueError, IndexError)):
        sink.close()
    assert len(decode(str(path))[0]) == 5


class FailingWriter:
    def __init__(self, error):
        self.error, self.aborted = error, False

    def write(self, frames):
        raise self.error

    def finish(self):
        raise AssertionError("nothing to finish")

    def abort(self):
        self.aborted = True


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "closed its end"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_an_error_of_the_writer_surfaces_on_the_next_call(error, match):
    writer = FailingWriter(error)
    sink = Sink(lambda: writer, "clip.mp4")
    with pytest.raises(OutputError, match=match):
        for _ in range(20):  # more than the queue holds: a dead writer must not block the caller
            sink.write(smooth_frames(1))
    with pytest.raises(OutputError, match=match):
        sink.close()
    assert writer.aborted


def test_a_slow_writer_holds_the_caller_back():
    class SlowWriter(FailingWriter):
        written = 0

        def write(self, frames):
            time.sleep(0.02)
            self.written += 1

        def finish(self):
            pass

    writer = SlowWriter(None)
    with Sink(lambda: writer, "clip.mp4") as sink:
        for count in range(1, 13):
            sink.write(smooth_frames(1))
            assert count - writer.written <= 6
    assert writer.written == 12
