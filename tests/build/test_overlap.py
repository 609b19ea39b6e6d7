"""Denoising ahead on a thread: the same bits as one after the other, whatever happens to the stream."""

import itertools
import threading
import time

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.errors import RtgenError, UsageError
from rtgen.runtime.backends import onnxruntime as backend_module
from rtgen.runtime.pipeline import Pipeline

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"


@pytest.fixture(scope="module")
def pair(tiny_built):
    """The same package with and without overlap."""
    folder = tiny_built("tiny-wan").package
    with Pipeline.open(folder, overlap=False) as plain, Pipeline.open(folder, overlap=True) as overlapped:
        assert (plain.overlaps, overlapped.overlaps) == (False, True)
        yield plain, overlapped


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not workers()


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "rtgen-denoiser"]


def switched(pipeline, switches, chunks, pause=0.0, **options):
    """Frames of a stream whose prompt changes before the chunks in ``switches``."""
    stream = pipeline.stream(PROMPT, seed=7, size=(32, 48), **options)
    found = []
    for chunk in range(chunks):
        if chunk in switches:
            time.sleep(pause)  # so that the chunk made ahead is sometimes finished
            pipeline.prompt = OTHER if switches.index(chunk) % 2 == 0 else PROMPT
        found.append(next(stream))
    stream.close()
    return np.concatenate(found)


@pytest.mark.parametrize("pause", [0.0, 0.1])
@pytest.mark.parametrize("switches", [(), (0,), (4,), (1, 2, 5)], ids=str)
@pytest.mark.parametrize("budget", [0.0, 0.2])
def test_the_bits_are_those_of_the_sequential_order(pair, switches, budget, pause):
    if pause and not switches:
        return
    plain, overlapped = pair
    expected = switched(plain, switches, 7, error_budget=budget)
    assert np.array_equal(switched(overlapped, switches, 7, pause, error_budget=budget), expected)
    assert overlapped.passes == plain.passes
    assert overlapped.times.frames == plain.times.frames == len(expected)


@pytest.mark.parametrize("frames", [1, 9, 10, 24, 33])
def test_as_many_chunks_are_made_as_the_frames_need(pair, frames):
    plain, overlapped = pair
    runs = count_runs(overlapped)
    assert np.array_equal(*(np.concatenate(list(each.stream(PROMPT, frames=frames))) for each in pair))
    passes = len(overlapped.manifest.model.sigmas) + 1
    assert runs() == passes * overlapped.passes.chunks == passes * plain.passes.chunks


def count_runs(pipeline):
    session, runs = pipeline._denoiser, itertools.count()
    original = type(session).run

    def run():
        next(runs)
        original(session)

    session.run = run
    start = next(runs)

    def counted():
        del session.run
        return next(runs) - start - 1

    return counted


def test_a_slow_taker_finds_one_chunk_ready_and_no_more(pair):
    _, overlapped = pair
    runs = count_runs(overlapped)
    stream = overlapped.stream(PROMPT)
    next(stream)
    time.sleep(0.5)
    assert runs() == 2 * (len(overlapped.manifest.model.sigmas) + 1)
    stream.close()


def test_denoising_goes_on_while_a_chunk_is_decoded(pair, monkeypatch):
    _, overlapped = pair
    seen, original = [], type(overlapped._denoiser).run
    decoding, denoised = threading.Event(), threading.Event()

    def run(session):
        if session is overlapped._denoiser:
            if decoding.is_set():
                denoised.set()
        elif session is overlapped._decoder.session and not seen:
            decoding.set()
            seen.append(denoised.wait(10))  # would never end in turns
        original(session)

    monkeypatch.setattr(type(overlapped._denoiser), "run", run)
    list(overlapped.stream(PROMPT, frames=21))
    assert seen == [True]


@pytest.mark.parametrize("component", ["_denoiser", "decoder"])
def test_an_error_of_a_stage_reaches_the_caller_once(pair, component):
    _, overlapped = pair
    session = overlapped._denoiser if component == "_denoiser" else overlapped._decoder.session
    run, calls = session.run, itertools.count()

    def fail_later():
        if next(calls) == 7:
            raise RtgenError("the device is gone")
        run()

    session.run = fail_later
    try:
        stream = overlapped.stream(PROMPT)
        with pytest.raises(RtgenError, match="the device is gone"):
            list(itertools.islice(stream, 30))
        assert not workers() and list(stream) == []
    finally:
        del session.run
    assert len(list(overlapped.stream(PROMPT, frames=24))) == 3  # and the next stream is sound


def test_closing_dropping_or_replacing_a_stream_ends_its_thread(pair):
    plain, overlapped = pair
    expected = np.concatenate(list(plain.stream(OTHER, frames=21)))
    closed = overlapped.stream(PROMPT)
    next(closed)
    assert workers()
    closed.close()
    assert not workers()
    dropped = overlapped.stream(PROMPT)
    next(dropped)
    del dropped
    assert not workers()
    replaced = overlapped.stream(PROMPT)
    next(replaced)
    assert np.array_equal(np.concatenate(list(overlapped.stream(OTHER, frames=21))), expected)
    assert list(replaced) == []


def test_ctrl_c_in_the_callers_loop_ends_the_thread(pair):
    _, overlapped = pair
    stream = overlapped.stream(PROMPT)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
        stream.throw(KeyboardInterrupt)
    assert not workers()


def test_another_thread_may_end_a_stream_that_waits(pair, monkeypatch):
    _, overlapped = pair
    waiting, found, original = threading.Event(), [], type(overlapped._denoiser).run

    def slow(session):
        if session is overlapped._denoiser:
            waiting.set()
            time.sleep(0.2)
        original(session)

    monkeypatch.setattr(type(overlapped._denoiser), "run", slow)
    taker = threading.Thread(target=lambda: found.extend(overlapped.stream(PROMPT)))
    taker.start()
    assert waiting.wait(10)
    overlapped._end_stream()
    taker.join(10)
    assert not taker.is_alive() and found == []


def test_streams_cancelled_and_started_again_leave_threads_and_memory_as_they_were(pair):
    psutil = pytest.importorskip("psutil")
    _, overlapped = pair
    process = psutil.Process()

    def cancel(times):
        for index in range(times):
            stream = overlapped.stream(PROMPT, seed=index, size=(32, 32))
            next(stream)
            stream.close()
        return process.memory_info().rss

    cancel(40)  # what libraries keep, they have by now
    threads, before = threading.active_count(), cancel(0)
    after = cancel(200)
    assert threading.active_count() == threads
    assert after - before < 8 << 20


def test_the_number_of_cores_decides_and_a_backend_that_cannot_is_not_asked_to(tiny_built, monkeypatch):
    folder = tiny_built("tiny").package
    for threads, expected in ((1, False), (3, False), (4, True), (16, True)):
        monkeypatch.setattr(backend_module, "thread_count", lambda threads=threads: threads)
        with Pipeline.open(folder) as pipeline:
            assert pipeline.overlaps is expected
    with Pipeline.open(folder) as pipeline:

        class InTurn:
            name, device = "in-turn", "stand-in"
            open = staticmethod(pipeline.backend.open)

            def close(self):
                pass

        assert not Pipeline(pipeline.package, InTurn()).overlaps
        with pytest.raises(UsageError, match="one component at a time"):
            Pipeline(pipeline.package, InTurn(), overlap=True)
