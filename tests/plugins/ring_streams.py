"""A ring of codes and a stream of random chunks, for tests of QuantizedKVCacheAttention on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
        return self.layout.window * self.frame_tokens + int(self.attributes.get("pool", 0))

    def reset(self) -> None:
        """An empty ring."""
        bits = int(self.attributes["bits"])
        self.codes = torch.zeros(2, self.heads, len(self), self.head_dim * bits // 8, dtype=torch.int8)
        self.scales = torch.zeros(2, self.heads, len(self), dtype=torch.float16)
        self.centres = torch.zeros(2, self.heads, self.head_dim, dtype=torch.float16)
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
        self.codes, self.scales, self.centres = (
            tensor.to(self.device) for tensor in (self.codes, self.scales, self.centres)
        )

    def poison(self) -> None:
        """What an earlier stream might have left there, and worse."""
        self.codes = torch.empty(self.codes.shape, dtype=torch.int8).random_(-128, 128, generator=self.generator)
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

    def written(self, index: int) -> slice:
        """The rows of a chunk."""
        start = self.layout.slot(index) * self.frame_tokens
        return slice(start, start + self.layout.chunk * self.frame_tokens)

    def numbers(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """write_index, valid_length and frame_tokens of a chunk."""
        found = (self.written(index).start, self.valid(index), self.frame_tokens)
        write, valid, frame = (torch.tensor([number], device=self.device) for number in found)
        return write, valid, frame

    def progress(self, index: int) -> reference.Progress:
        """The same as the reference takes it."""
        return reference.Progress(
            self.written(index).start, self.valid(index), self.frame_tokens, self.layout.chunk * self.frame_tokens
        )

    def prune(self) -> reference.Prune:
        """Soft prune as the reference takes it."""
        keep, recent = float(self.attributes.get("keep", 1.0)), float(self.attributes.get("recent", 0.25))
        return reference.Prune(int(self.attributes.get("pool", 0)), int(self.attributes.get("sink", 0)), keep, recent)

    def attend(self, chunk: tuple[Tensor, ...], index: int) -> Tensor:
        """Write a chunk and attend to the ring."""
        states = (self.codes, self.scales, self.centres)
        return attend_in_place(*chunk, *states, *self.numbers(index), **self.attributes)  # type: ignore[arg-type]

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
