"""What linear layers are given while a block runs: some rows of each input, and the greatest magnitudes of all."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class InputGroup:
    """Linear layers that are given the same tensor, such as the projections to queries, keys and values.

    They share what is done to their input, so that it is done once.
    """

    names: list[str]
    """Of the modules, in the order they are called."""
    rows: list[Tensor] = field(default_factory=list)
    amax: Tensor | None = None
    """[in] float32: the greatest magnitude of each channel over everything that was seen."""

    @property
    def inputs(self) -> Tensor:
        """The sampled rows, [n, in] float32, in the order they were seen."""
        return torch.cat(self.rows)

    def see(self, x: Tensor, rows: Tensor | None) -> None:
        """Take in an input [n, in]; ``rows`` are the indices of those to keep."""
        amax = x.abs().amax(dim=0).float()
        self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)
        if rows is not None:
            self.rows.append(x[rows].float())


class SampleCollector:
    """Collects the inputs of the linear layers called ``wanted`` within ``module``.

    In each call of the module that is marked with :meth:`sampling`, ``rows_per_call`` random rows are kept.
    """

    def __init__(self, module: nn.Module, wanted: Collection[str], rows_per_call: int, seed: int) -> None:
        self._module, self._wanted, self._rows = module, wanted, rows_per_call
        self._generator = torch.Generator().manual_seed(seed)
        self._groups: dict[str, InputGroup] = {}
        """By the layer that is called first."""
        self._seen: list[tuple[Tensor, str]] = []  # held until the call ends: a freed tensor's address is used again
        self._followers: set[str] = set()
        self._is_sampling = True

    @property
    def groups(self) -> list[InputGroup]:
        """In the order they are called."""
        return list(self._groups.values())

    def next_call(self, *, is_sampled: bool) -> None:
        """Say that a call of the module is over, and whether rows of the next one are to be kept."""
        self._seen, self._is_sampling = [], is_sampled

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect while the module runs."""
        hooks = [
            module.register_forward_pre_hook(partial(self._before, name))
            for name, module in self._module.named_modules()
            if name in self._wanted
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._seen = []

    def _before(self, name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if name in self._followers:
            return
        x: Tensor = arguments[0]
        leader = next((other for tensor, other in self._seen if tensor is x), None)
        if leader is not None:
            self._groups[leader].names.append(name)
            self._followers.add(name)
            return
        self._seen.append((x, name))
        group = self._groups.setdefault(name, InputGroup([name]))
        flat = x.reshape(-1, x.shape[-1])
        group.see(flat, self._choose(len(flat)) if self._is_sampling else None)

    def _choose(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator)[: self._rows].sort().values
