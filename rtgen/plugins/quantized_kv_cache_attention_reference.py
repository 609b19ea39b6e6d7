"""The arithmetic of ``rtgen::QuantizedKVCacheAttention`` in torch: what the kernels are held against.

Everything is float32 with the roundings the operator names; docs/plugins/kv_cache_attention.md gives the formulas and
their sources. Keys and values are dequantized here, which the kernels never do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

CHANGE_WEIGHT = 0.2
RECENCY_WEIGHT = 0.8
"""What the score of an old frame is made of. On the bundled model age says more about a frame's worth than change: with
0.7 and 0.3 attention's outputs are 2.5 dB worse, no better than with frames chosen at random."""


@dataclass(frozen=True)
class Prune:
    """Soft prune, in latent frames; ``window`` is also the number of pool rows, and of entries of ``pages``."""

    window: int
    sink: int
    keep: float
    recent: float

    @property
    def is_active(self) -> bool:
        """Whether anything is ever pruned. If not, the ring has no pages: a token's place is its row."""
        return self.keep < 1

    def pages(self, rows: int, frame_tokens: int) -> int:
        """Of a ring of so many rows; more than there are frames are not used."""
        return min((rows - self.window) // frame_tokens, self.window)


@dataclass(frozen=True)
class Progress:
    """The three device values, read: where a pass writes, what is valid, and the tokens of a latent frame."""

    write_index: int
    valid_length: int
    frame_tokens: int
    tokens: int
    """Of the chunk."""

    @property
    def is_first(self) -> bool:
        """Whether the chunk is the ring's first, which settles the centres."""
        return self.write_index == 0 and self.valid_length == self.tokens

    @property
    def frames(self) -> int:
        """Latent frames that the ring holds, the chunk's among them."""
        return self.valid_length // self.frame_tokens

    @property
    def chunk(self) -> int:
        """Latent frames of the chunk."""
        return self.tokens // self.frame_tokens

    @property
    def write_frame(self) -> int:
        """The chunk's first frame slot."""
        return self.write_index // self.frame_tokens


def rotate(values: Tensor) -> Tensor:
    """float32 [.., D] times the normalised Hadamard matrix: butterflies over strides 1, 2, .., D / 2."""
    size = values.shape[-1]
    turned = values
    for _ in range(size.bit_length() - 1):
        # The pairs of the next stride are neighbours again once sums and differences stand one behind the other.
        even, odd = turned[..., 0::2], turned[..., 1::2]
        turned = torch.cat([even + odd, even - odd], dim=-1)
    return turned * _float32(1 / math.sqrt(size))


def quantize(rotated: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [.., D] and scales float16 [..] of float32 values [.., D]; not finite: codes 0, scale NaN."""
    lowest = -(2 ** (bits - 1))
    largest, smallest = rotated.amax(dim=-1, keepdim=True), rotated.amin(dim=-1, keepdim=True)
    extreme = torch.where(largest > -smallest, largest, smallest)
    scale = (extreme / lowest).half()
    finite = largest.isfinite() & smallest.isfinite() & scale.isfinite()
    inverse = torch.where((scale != 0) & finite, scale.float().reciprocal(), 0.0)
    codes = torch.where(finite, (rotated * inverse).round().clamp(lowest, -lowest - 1), 0.0)
    return codes.to(torch.int8), torch.where(finite, scale, torch.nan).squeeze(-1)


def quantize_queries(rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Codes float32 [.., D] of -127..127 and scales float32 [.., 1]; not finite: codes 0, scale NaN."""
    amax = rotated.abs().amax(dim=-1, keepdim=True)
    finite = amax.isfinite()
    inverse = torch.where((amax > 0) & finite, torch.div(torch.full_like(amax, 127.0), amax), 0.0)
    codes = torch.where(finite, (rotated * inverse).round(), 0.0)
    return codes, torch.where(finite, amax / 127.0, torch.nan)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 [.., D] as they lie in memory, [.., D * bits / 8]: of two 4-bit ones the first in the low half."""
    return codes if bits == 8 else (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack`."""
    if bits == 8:
        return packed
    low = (packed << 4) >> 4  # shifts of int8 keep the sign
    return torch.stack([low, packed >> 4], dim=-1).flatten(-2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    codes: Tensor,
    scales: Tensor,
    centres: Tensor,
    pages: Tensor,
    progress: Progress,
    bits: int,
    prune: Prune,
) -> Tensor:
    """Write the chunk into the states, in place, and attend. Shapes as in the operator; [1, H, T, D] like ``query``."""
    enter_chunk(key, value, codes, scales, centres, pages, progress, bits, prune)
    rows, bias = live_rows(pages, codes.shape[2], progress, prune)
    return attend_rows(query, codes, scales, centres, rows.to(codes.device), bias.to(codes.device), bits)


def enter_chunk(
    key: Tensor,
    value: Tensor,
    codes: Tensor,
    scales: Tensor,
    centres: Tensor,
    pages: Tensor,
    progress: Progress,
    bits: int,
    prune: Prune,
) -> None:
    """All that comes before the attention: centres, the choice of frames and their pages, codes, pool."""
    if progress.is_first:
        centres.copy_(torch.stack([key[0], value[0]]).float().mean(dim=2))
    if prune.is_active:
        assign_pages(codes, scales, pages, progress, bits, prune)
    rows = chunk_rows(pages, progress, prune).to(codes.device)
    write_chunk(key, value, codes, scales, centres, rows, bits)
    if prune.is_active:
        refresh_pool(codes, scales, rows, progress, bits, prune.window)


def assign_pages(codes: Tensor, scales: Tensor, pages: Tensor, progress: Progress, bits: int, prune: Prune) -> None:
    """Take the pages of frames that are pruned now and give free ones to the chunk's, in place.

    What a page holds of the chunk itself is of no account, so every pass of a chunk comes to the same end. Raises
    ValueError for a ring of too few pages.
    """
    count = prune.pages(codes.shape[2], progress.frame_tokens)
    own = range(progress.write_frame, progress.write_frame + progress.chunk)
    before = [] if progress.is_first else pages[: progress.frames].tolist()
    held = {slot: page for slot, page in enumerate(before) if slot not in own and 0 <= page < count}
    for slot in newly_pruned(codes, scales, set(held), progress, bits, prune):
        del held[slot]
    free = [page for page in range(count) if page not in held.values()]
    if len(free) < len(own):
        raise ValueError(f"of {count} pages {len(free)} are free for {len(own)} frames")
    held |= zip(own, free, strict=False)
    pages.fill_(-1)
    for slot, page in held.items():
        pages[slot] = page


def chunk_rows(pages: Tensor, progress: Progress, prune: Prune) -> Tensor:
    """Where the chunk's tokens lie, int64 [T]."""
    if not prune.is_active:
        return progress.write_index + torch.arange(progress.tokens)
    own = range(progress.write_frame, progress.write_frame + progress.chunk)
    return _rows_of([int(pages[slot]) for slot in own], progress.frame_tokens)


def write_chunk(
    key: Tensor, value: Tensor, codes: Tensor, scales: Tensor, centres: Tensor, rows: Tensor, bits: int
) -> None:
    """Rotate and quantize the chunk's keys and values into their rows of the ring."""
    rotated = rotate(torch.stack([key[0], value[0]]).float() - centres.float().unsqueeze(2))
    fresh, fresh_scales = quantize(rotated, bits)
    codes[:, :, rows], scales[:, :, rows] = pack(fresh, bits), fresh_scales


def refresh_pool(codes: Tensor, scales: Tensor, rows: Tensor, progress: Progress, bits: int, window: int) -> None:
    """Make the pool rows of the chunk's frames, whose tokens lie in ``rows``, the means of their tokens."""
    tokens = unpack(codes[:, :, rows], bits).float() * scales[:, :, rows].float().unsqueeze(-1)
    means = tokens.reshape(*tokens.shape[:2], progress.chunk, progress.frame_tokens, -1).mean(dim=3)
    first = codes.shape[2] - window + progress.write_frame
    fresh, fresh_scales = quantize(means, bits)
    codes[:, :, first : first + progress.chunk] = pack(fresh, bits)
    scales[:, :, first : first + progress.chunk] = fresh_scales


def live_rows(pages: Tensor, length: int, progress: Progress, prune: Prune) -> tuple[Tensor, Tensor]:
    """The rows that are attended to, int64 [N], of a ring of ``length`` rows that the chunk has entered, and what is
    added to their logits, float32 [N] (natural logarithm)."""
    if not prune.is_active:
        return torch.arange(progress.valid_length), torch.zeros(progress.valid_length)
    held = pages[: progress.frames].tolist()
    pruned = [slot for slot, page in enumerate(held) if page < 0]
    tokens = _rows_of([page for page in held if page >= 0], progress.frame_tokens)
    rows = torch.cat([tokens, length - prune.window + torch.tensor(pruned, dtype=torch.int64)])
    bias = torch.zeros(len(rows))
    bias[len(tokens) :] = math.log(progress.frame_tokens)
    return rows, bias


def newly_pruned(
    codes: Tensor, scales: Tensor, live: set[int], progress: Progress, bits: int, prune: Prune
) -> set[int]:
    """The frame slots of ``live``, those that hold their tokens, which a pool row is to stand for from now on."""
    order, frames = slots_by_time(progress, prune), progress.frames
    # The margin, since .1 of 10 frames is a little more than one in float32.
    recent = max(progress.chunk, math.ceil(_float32(prune.recent) * frames - 1e-4))
    first = min(prune.sink, frames)
    count = max(0, frames - recent - first)
    keep = min(max(round(_float32(_float32(prune.keep) * frames)) - (frames - count), 0), count)
    if keep == count:
        return set()
    rows = torch.tensor([codes.shape[2] - prune.window + slot for slot in order], device=codes.device)
    pooled = unpack(codes[:, :, rows], bits).float() * scales[:, :, rows].float().unsqueeze(-1)  # by time
    power = pooled.square().sum(dim=(0, 1, 3))
    steps = (pooled[:, :, 1:] - pooled[:, :, :-1]).square().sum(dim=(0, 1, 3))
    both = power[1:] + power[:-1]
    change = torch.cat([torch.ones_like(power[:1]), torch.where(both > 0, steps / both, 0.0)])
    recency = torch.arange(count, device=codes.device) / count
    score = (CHANGE_WEIGHT * change[first : first + count] + RECENCY_WEIGHT * recency).tolist()
    candidates = [rank for rank in range(count) if order[first + rank] in live]
    best = sorted(candidates, key=lambda rank: (score[rank], rank), reverse=True)
    return {order[first + rank] for rank in best[keep:]}


def slots_by_time(progress: Progress, prune: Prune) -> list[int]:
    """The valid frame slots from the oldest to the newest."""
    if progress.frames < prune.window:
        return list(range(progress.frames))
    turning = prune.window - prune.sink
    start = progress.write_frame + progress.chunk - prune.sink
    return [*range(prune.sink), *(prune.sink + (start + rank) % turning for rank in range(turning))]


def attend_rows(
    query: Tensor, codes: Tensor, scales: Tensor, centres: Tensor, rows: Tensor, bias: Tensor, bits: int
) -> Tensor:
    """Attention to some rows of the ring, with ``bias`` added to their logits."""
    query_codes, query_scales = quantize_queries(rotate(query[0].float()))
    row_codes, row_scales = unpack(codes[:, :, rows], bits).float(), scales[:, :, rows].float().unsqueeze(-1)
    logits = query_codes @ row_codes[0].mT  # integers below 2^24: exact
    logits = logits * row_scales[0].mT * (query_scales / math.sqrt(query.shape[-1])) + bias
    values = (row_codes[1] * row_scales[1]).half().float()
    mixed = rotate(logits.softmax(dim=-1) @ values)  # the Hadamard matrix is its own inverse
    return (mixed + centres[1].float().unsqueeze(1)).to(query.dtype).unsqueeze(0)


def _rows_of(pages: list[int], frame_tokens: int) -> Tensor:
    """int64, of all tokens of some pages."""
    return (torch.tensor(pages, dtype=torch.int64)[:, None] * frame_tokens + torch.arange(frame_tokens)).flatten()


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
