"""The denoiser's half of a stream: latents chunk by chunk, made when asked for, or one chunk ahead on a thread."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from rtgen.runtime.adaptive import PassCount
from rtgen.runtime.chunk_memory import ChunkMemory
from rtgen.runtime.denoise import Denoiser, StoppedError
from rtgen.runtime.session import Array

_POLL_SECONDS: Final = 0.1
"""Longest wait at a time: on Windows Ctrl-C arrives between waits."""


@dataclass(frozen=True)
class Mark:
    """A place between two chunks of a stream, to which it can be taken back."""

    chunk: int
    memory: ChunkMemory
    passes: PassCount


@dataclass(frozen=True)
class MadeChunk:
    """The latents of a chunk."""

    latents: Array
    """[1, channels, latent frames, height, width] float32, on the host; nobody changes it."""
    seconds: float
    """From the start of its first pass until its latents were read."""
    after: Mark


class ChunkSource(Protocol):
    """Where the decoder's half gets its chunks from."""

    def take(self) -> MadeChunk:
        """The next chunk. Raises what its passes raise, and StoppedError if another thread closes the source."""

    def switch(self, encode: Callable[[], Array]) -> None:
        """From the next chunk on, follow the context that ``encode`` returns, [1, tokens, dim] float32."""

    def resize(self, sizes: Mapping[str, int]) -> Array | None:
        """From the next chunk on, make frames of another size.

        Returns the latents of the last chunk in that size, for the decoder to go on from; None if none is remembered.
        Raises MemoryPlanError when the device has no room.
        """

    def close(self) -> None:
        """Make no more chunks; no thread is left. Idempotent."""


class ChunkMaker:
    """Makes each chunk when it is asked for, on the caller's thread."""

    def __init__(self, denoiser: Denoiser, memory: ChunkMemory) -> None:
        self.denoiser, self.memory = denoiser, memory
        self._chunk = 0
        self._is_stale = False  # the ring holds something else than the memory says

    def take(self) -> MadeChunk:
        start = time.perf_counter()
        if self.memory.is_at_limit:
            self.memory.rebase()
            self._is_stale = True
        if self._is_stale:
            self.denoiser.refill(self.memory)
            self._is_stale = False
        self.denoiser.generate(self._chunk, self.memory.position)
        latents = self.denoiser.session.read("denoised")
        seconds = time.perf_counter() - start
        self.memory.add(latents)
        self._chunk += 1
        return MadeChunk(latents, seconds, self.mark())

    def switch(self, encode: Callable[[], Array]) -> None:
        self.denoiser.set_context(encode())
        self._is_stale = True

    def resize(self, sizes: Mapping[str, int]) -> Array | None:
        self.denoiser.resize(sizes)
        self.memory.resize(self.denoiser.latent_shape[-2:])
        self._is_stale = True
        return self.memory.latest

    def close(self) -> None:
        pass

    def mark(self) -> Mark:
        """Where the stream is now."""
        return Mark(self._chunk, _copy(self.memory), replace(self.denoiser.passes))

    def rewind(self, mark: Mark) -> None:
        """Go back to ``mark``; what the ring holds is made again from the remembered latents with the next chunk."""
        self._chunk, self.memory, self.denoiser.passes = mark.chunk, _copy(mark.memory), replace(mark.passes)
        self._is_stale = True


class ChunksAhead:
    """Makes chunks on a thread of its own, one ahead of the decoder: the next begins when the last has been taken.

    So a slow taker holds the thread back, and two sets of latents are all that there is: one with the decoder, one
    waiting or in the making. A chunk that was begun before :meth:`switch` or :meth:`resize` is given up and made again
    under the new context or in the new size, so the stream has the same bits as one of a :class:`ChunkMaker`.
    """

    def __init__(self, maker: ChunkMaker, count: int | None) -> None:
        """``count``: chunks that will be taken at most, or None without an end."""
        self._maker, self._count = maker, count
        self._taken = maker.mark()
        self._worker: _Worker | None = None
        self._change = threading.Lock()  # of the worker: another thread may close it as soon as it runs

    def take(self) -> MadeChunk:
        with self._change:
            if self._worker is None:
                left = None if self._count is None else self._count - self._taken.chunk
                self._worker = _Worker(self._maker, left)
            worker = self._worker
        made = worker.take()
        self._taken = made.after
        return made

    def switch(self, encode: Callable[[], Array]) -> None:
        self._give_up()
        self._maker.switch(encode)

    def resize(self, sizes: Mapping[str, int]) -> Array | None:
        self._give_up()
        return self._maker.resize(sizes)

    def _give_up(self) -> None:
        """What was begun already is not wanted any more."""
        if self._worker is not None:
            self.close()
            self._maker.rewind(self._taken)

    def close(self) -> None:
        with self._change:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.close()


class _Worker:
    """The thread of :class:`ChunksAhead`."""

    def __init__(self, maker: ChunkMaker, count: int | None) -> None:
        self._maker, self._count = maker, count
        self._stop = maker.denoiser.stop
        self._stop.clear()
        self._wanted = threading.Semaphore(1)
        self._made: queue.SimpleQueue[MadeChunk | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rtgen-denoiser", daemon=True)
        self._thread.start()

    def take(self) -> MadeChunk:
        while True:
            try:
                made = self._made.get(timeout=_POLL_SECONDS)
                break
            except queue.Empty:
                if not self._thread.is_alive() and self._made.empty():
                    raise StoppedError from None  # closed by another thread
        if isinstance(made, BaseException):
            raise made
        self._wanted.release()
        return made

    def close(self) -> None:
        self._stop.set()
        self._wanted.release()
        self._thread.join()
        self._stop.clear()

    def _work(self) -> None:
        for _ in itertools.count() if self._count is None else range(self._count):
            self._wanted.acquire()
            if self._stop.is_set():
                return
            try:
                self._made.put(self._maker.take())
            except BaseException as error:  # handed to the caller's thread
                self._made.put(error)
                return


def _copy(memory: ChunkMemory) -> ChunkMemory:
    """The same latents, in a list of its own."""
    return replace(memory, chunks=list(memory.chunks))
