"""Ways of attending that share nothing with the K/V ring, and the small models the tests put them into."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.model import DenoiserConfig
from rtgen.models.dit import CausalVideoDiT
from rtgen.models.rope import axis_table, token_rotation
from tests.models.random_weights import random_weights


def visible_chunks(chunk: int, *, window: int, sink: int) -> list[int]:
    """The chunks that one sees: the sink, and the latest ones with itself. All counted in chunks."""
    return [other for other in range(chunk + 1) if other < sink or other > chunk - (window - sink)]


class DenseAttend:
    """Attention over a whole clip under a boolean mask [T, T]."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query.double() @ key.double().transpose(2, 3)) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.mask, -torch.inf).softmax(dim=-1)
        return (weights @ value.double()).float()


class HistoryAttend:
    """Attention to given earlier keys and values of each layer, and to the chunk's own. Remembers the latter."""

    def __init__(self, earlier: list[list[tuple[Tensor, Tensor]]]) -> None:
        self.earlier = earlier
        self.own: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert layer == len(self.own)
        self.own.append((key, value))
        keys, values = (
            torch.cat([*(pairs[layer][part] for pairs in self.earlier), own], dim=2)
            for part, own in enumerate((key, value))
        )
        return F.scaled_dot_product_attention(query, keys, values)


def rotation(config: DenoiserConfig, frames: Tensor, rows: int, columns: int) -> Tensor:
    """Token rotation of latent ``frames`` (their positions in time) of a token grid."""
    positions = (frames, torch.arange(rows), torch.arange(columns))
    time, height, width = (
        axis_table(place, channels, config.rope_theta)
        for place, channels in zip(positions, config.rope_split, strict=True)
    )
    return token_rotation((time, height, width))


def small_dit(seed: int = 0, **fields: object) -> CausalVideoDiT:
    config = DenoiserConfig.model_validate(
        {"dim": 48, "layers": 3, "heads": 2, "ffn_dim": 64, "frequency_dim": 32} | fields
    )
    model = CausalVideoDiT(config, channels=4, text_dim=16).eval().requires_grad_(False)
    random_weights(model, seed)
    return model
