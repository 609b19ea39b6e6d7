"""Self-attention through the K/V ring, as the streaming runtime runs it."""

from collections.abc import Sequence

from torch import Tensor

from rtgen.plugins.kv_cache_attention import torch_op


class KVRing:
    """An :class:`rtgen.models.dit.Attend` over per-layer caches.

    ``keys`` and ``values`` hold one [1, heads, S, head_dim] tensor a layer; ``write_index`` and ``valid_length`` are
    [1] int64. After a pass they hold the updated caches.
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], write_index: Tensor, valid_length: Tensor
    ) -> None:
        self.keys, self.values = list(keys), list(values)
        self.write_index, self.valid_length = write_index, valid_length
        self._attend = torch_op()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, self.keys[layer], self.values[layer] = self._attend(
            query, key, value, self.keys[layer], self.values[layer], self.write_index, self.valid_length
        )
        return output
