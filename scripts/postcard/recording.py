"""What an evaluation keeps of a stream: its first and its last five seconds, and how every frame changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.postcard.classifier import CLIP_FRAMES


@dataclass(frozen=True)
class Recording:
    """Streams of equal length T, on the device that made them."""

    early: Tensor
    """The first frames, uint8 [B, 80, 3, H, W]."""
    late: Tensor
    """The last frames, uint8 [B, 80, 3, H, W]."""
    changes: Tensor
    """Change of each frame from the one before, float32 [B, T - 1], in levels of 0..255; see `change`."""
    jolts: Tensor
    """How far each frame lies off the way between its neighbours, float32 [B, T - 2]; see `jolts`."""

    def flicker(self, window: str) -> float:
        """Mean change of the window "early" or "late"."""
        changes = self.changes[:, : CLIP_FRAMES - 1] if window == "early" else self.changes[:, 1 - CLIP_FRAMES :]
        return float(changes.mean())


def record(chunks: Iterable[Tensor], frames: int) -> Recording:
    """Watch chunks uint8 [B, F, 3, H, W] until there are `frames` frames, at least 80; what is beyond is ignored.

    Raises ValueError if the chunks end before.
    """
    kept: list[Tensor] = []
    early: Tensor | None = None
    changes: list[Tensor] = []
    across_two: list[Tensor] = []
    seen = 0
    for chunk in chunks:
        chunk = chunk[:, : frames - seen]
        with_earlier = torch.cat([kept[-1][:, -2:], chunk], dim=1) if kept else chunk
        seen += chunk.shape[1]
        changes.append(change(with_earlier, 1)[:, -chunk.shape[1] :])
        across_two.append(change(with_earlier, 2)[:, -chunk.shape[1] :])
        kept.append(chunk)
        if early is None and seen >= CLIP_FRAMES:
            early = torch.cat(kept, dim=1)[:, :CLIP_FRAMES]
        while sum(part.shape[1] for part in kept[1:]) >= CLIP_FRAMES:
            del kept[0]
        if seen == frames:
            break
    if early is None or seen < frames:
        raise ValueError(f"a recording of {frames} frames, at least {CLIP_FRAMES}, was given {seen}")
    ones = torch.cat(changes, dim=1)
    return Recording(early, torch.cat(kept, dim=1)[:, -CLIP_FRAMES:], ones, jolts(ones, torch.cat(across_two, dim=1)))


def change(video: Tensor, apart: int) -> Tensor:
    """Mean absolute difference of frames `apart` frames apart: uint8 [B, T, 3, H, W] to float32 [B, T - apart]."""
    later, earlier = video[:, apart:].short(), video[:, :-apart].short()
    return (later - earlier).abs().mean((2, 3, 4), dtype=torch.float32)


def jolts(changes: Tensor, across_two: Tensor) -> Tensor:
    """How far a frame lies off the way from the one before to the one after: [B, T - 1], [B, T - 2] to [B, T - 2].

    (d(a, b) + d(b, c) - d(a, c)) / 2: zero for anything that moves steadily from a to c, and for a cut; a frame that
    does not belong between its neighbours gets what sets it apart.
    """
    return (changes[:, :-1] + changes[:, 1:] - across_two) / 2


def join(parts: Iterable[Recording]) -> Recording:
    """Recordings of equal length as one batch."""
    columns = zip(*((part.early, part.late, part.changes, part.jolts) for part in parts), strict=True)
    return Recording(*(torch.cat(column) for column in columns))
