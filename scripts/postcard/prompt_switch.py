"""Another prompt in mid-stream: do the new attributes show soon, and does no frame break?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from scripts.postcard.classifier import CLIP_FRAMES, Classifier
from scripts.postcard.grammar import Scene, canonical_caption
from scripts.postcard.judging import accuracy, read_clips
from scripts.postcard.recording import Recording, change, join, record
from scripts.postcard.rollout import BatchStream, Parts, Sampling

CHUNKS_BEFORE = 4
"""Of the first prompt: three seconds, as many chunks as the bundled model's window holds."""
CHUNKS_AFTER = 2
"""Of the second prompt, in which the scene may change; what comes later is read."""
CHANGING = ("place", "time", "weather", "subject", "colour")
"""Attributes that differ between the two prompts."""


def partners(scenes: Sequence[Scene]) -> list[int]:
    """For each scene another one to switch to: the next in the list that differs in all of `CHANGING`, or in most."""
    found = []
    for index, scene in enumerate(scenes):
        others = [(index + step) % len(scenes) for step in range(1, len(scenes))]
        found.append(max(others, key=lambda other: _differences(scene, scenes[other])))  # the first of equals
    return found


def _differences(one: Scene, other: Scene) -> int:
    return sum(getattr(one, name) != getattr(other, name) for name in CHANGING)


def switched_stream(stream: BatchStream, prompts: Sequence[str]) -> Iterator[Tensor]:
    """Chunks of a stream that has other prompts after `CHUNKS_BEFORE`."""
    for _ in range(CHUNKS_BEFORE):
        yield stream.next_chunk()
    stream.switch(prompts)
    while True:
        yield stream.next_chunk()


def measure_switch(
    parts: Parts,
    sampling: Sampling,
    classifier: Classifier,
    scenes: Sequence[Scene],
    ordinary: tuple[Recording, Tensor],
    renders: Recording,
    *,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Switch every stream once. `ordinary`: the scenes' streams without a switch, and what was read early in them.

    The numbers of a change or jolt are the largest of each stream: their median and their maximum over the streams.
    """
    chunk_frames = parts.config.cache.chunk * parts.config.autoencoder.temporal_stride
    after = partners(scenes)
    prompts = [canonical_caption(scene) for scene in scenes]
    recordings, finite = [], True
    for start in range(0, len(scenes), batch):
        stream = BatchStream(parts, prompts[start : start + batch], sampling, seed=seed + start)
        chunks = switched_stream(stream, [prompts[index] for index in after[start : start + batch]])
        recordings.append(record(chunks, (CHUNKS_BEFORE + CHUNKS_AFTER) * chunk_frames + CLIP_FRAMES))
        finite = finite and bool(stream.finite)
    switched = join(recordings)
    asked = [scenes[index] for index in after]
    at = CHUNKS_BEFORE * chunk_frames - 1  # the change between the last frame of one prompt and the first of the next
    near = slice(at, at + CHUNKS_AFTER * chunk_frames)
    streams, answers = ordinary
    return {
        "chunks_before": CHUNKS_BEFORE,
        "chunks_after": CHUNKS_AFTER,
        "switched": accuracy(read_clips(classifier, switched.late).answers, asked),
        "without": accuracy(answers[after], asked),
        "finite": finite,
        "change": {
            "switch": _largest(switched.changes[:, near]),
            "streams": _largest(streams.changes),
            "renders": _largest(renders.changes),
            "cut between renders": _largest(cuts(renders.early, after)),
        },
        "jolt": {
            "switch": _largest(switched.jolts[:, max(0, at - 1) : near.stop]),
            "streams": _largest(streams.jolts),
            "renders": _largest(renders.jolts),
        },
    }


def cuts(video: Tensor, after: Sequence[int]) -> Tensor:
    """How much a cut from each clip [B, T, 3, H, W] to the one numbered `after` would change: float32 [B, 1]."""
    middle = video[:, video.shape[1] // 2]
    return change(torch.stack([middle, middle[torch.tensor(after, device=video.device)]], dim=1), 1)


def _largest(values: Tensor) -> dict[str, float]:
    most = values.amax(1)
    return {"median": float(most.median()), "maximum": float(most.max())}
