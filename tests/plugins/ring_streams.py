"""A ring of codes and a stream of random chunks, for tests of QuantizedKVCacheAttention on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.kv_cache import most_live
from rtgen.plugins import quantized_kv_cache_attention_reference as reference
from rtgen.plugins.quantized_kv_cache_attention import attend_in_place
from rtgen.runtime.kv_cache import RingLayout


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).half()


class Ring:
    """The states of one layer. ``attributes`` are those of the operator that are not its defaults."""

    def __init__(
        self,
        heads: int,
        head_dim: int,
        frame_tokens: int,
        layout: RingLayout,
        attributes: dict[str, int | float],
        generator: torch.Generator,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.heads, self.head_dim, self.frame_tokens, self.layout = heads, head_dim, frame_tokens, layout
        self.attributes, self.generator = attributes, generator
        self.reset()

    def __len__(self) -> int:
        return self.frames * self.frame_tokens + int(self.attributes.get("pool", 0))

    @property
    def frames(self) -> int:
        """Latent frames of tokens that there is memory for."""
        layout, prune = self.layout, self.prune()
        return most_live(layout.window, layout.sink, layout.chunk, prune.keep, prune.recent)

    def reset(self) -> None:
        """An empty ring."""
        bits = int(self.attributes["bits"])
        self.codes = torch.zeros(2, self.heads, len(self), self.head_dim * bits // 8, dtype=torch.int8)
        self.scales = torch.zeros(2, self.heads, len(self), dtype=torch.float16)
        self.centres = torch.zeros(2, self.heads, self.head_dim, dtype=torch.float16)
        self.pages = torch.zeros(max(int(self.attributes.get("pool", 0)), 1), dtype=torch.int64)
        self._move()
        self._floats: dict[int, tuple[Tensor, Tensor]] = {}

    def twin(self, **attributes: int | float) -> Ring:
        """An empty ring of the same sizes with other attributes besides."""
        return Ring(
            self.heads,
            self.head_dim,
            self.frame_tokens,
            self.layout,
            self.attributes | attributes,
            self.generator,
            self.device,
        )

    def _move(self) -> None:
        self.states = tuple(tensor.to(self.device) for tensor in self.states)

    @property
    def states(self) -> tuple[Tensor, ...]:
        """Those of the operator, in its order."""
        return self.codes, self.scales, self.centres, self.pages

    @states.setter
    def states(self, tensors: Sequence[Tensor]) -> None:
        self.codes, self.scales, self.centres, self.pages = tensors

    def poison(self) -> None:
        """What an earlier stream might have left there, and worse."""
        self.codes = torch.empty(self.codes.shape, dtype=torch.int8).random_(-128, 128, generator=self.generator)
        self.pages = torch.empty(self.pages.shape, dtype=torch.int64).random_(-5, 40, generator=self.generator)
        self._move()
        self.scales.fill_(torch.nan)
        self.centres.fill_(torch.nan)

    def chunk(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; channels differ in size, and have a mean."""
        tokens = self.layout.chunk * self.frame_tokens
        shape = (1, self.heads, tokens, self.head_dim)
        size = (torch.arange(self.head_dim) % 7 + 1) / 4
        query, key, value = (noise(self.generator, *shape).float() * size for _ in range(3))
        made = (query.half(), (key + size).half(), (value - size / 2).half())
        return made[0].to(self.device), made[1].to(self.device), made[2].to(self.device)

    def valid(self, index: int) -> int:
        """Tokens that are valid once a chunk is written."""
        return self.layout.length(index) * self.frame_tokens

    def written(self, index: int) -> Tensor:
        """The rows of a chunk that was written, int64."""
        return reference.chunk_rows(self.pages, self.progress(index), self.prune()).to(self.device)

    def numbers(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """write_index, valid_length and frame_tokens of a chunk."""
        progress = self.progress(index)
        found = (progress.write_index, progress.valid_length, progress.frame_tokens)
        write, valid, frame = (torch.tensor([number], device=self.device) for number in found)
        return write, valid, frame

    def progress(self, index: int) -> reference.Progress:
        """The same as the reference takes it."""
        start = self.layout.slot(index) * self.frame_tokens
        return reference.Progress(start, self.valid(index), self.frame_tokens, self.layout.chunk * self.frame_tokens)

    def prune(self) -> reference.Prune:
        """Soft prune as the reference takes it."""
        keep, recent = float(self.attributes.get("keep", 1.0)), float(self.attributes.get("recent", 0.25))
        return reference.Prune(int(self.attributes.get("pool", 0)), int(self.attributes.get("sink", 0)), keep, recent)

    def attend(self, chunk: tuple[Tensor, ...], index: int) -> Tensor:
        """Write a chunk and attend to the ring."""
        return attend_in_place(*chunk, *self.states, *self.numbers(index), **self.attributes)  # type: ignore[arg-type]

    def pruned(self, index: int) -> set[int]:
        """Frame slots that are seen as their pool rows, after a chunk."""
        if not self.prune().is_active:
            return set()
        return {slot for slot, page in enumerate(self.pages[: self.layout.length(index)].tolist()) if page < 0}

    def remember(self, chunk: tuple[Tensor, ...], index: int) -> tuple[Tensor, Tensor, Tensor]:
        """The chunk's queries, and all keys and values that it sees, as floats."""
        if index == 0:
            self._floats = {}
        self._floats[self.layout.slot(index)] = (chunk[1], chunk[2])
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*self._floats.values(), strict=True))
        return chunk[0], keys, values

    def exact(self, seen: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Plain attention in float32."""
        return F.scaled_dot_product_attention(*(tensor.float() for tensor in seen))
