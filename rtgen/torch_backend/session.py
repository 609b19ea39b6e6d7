"""One component of a torch package behind the interface of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch import Tensor

from rtgen.runtime.backends.buffers import BufferTable, check_copy
from rtgen.runtime.profiles import choose_profile
from rtgen.runtime.session import Array, Session, check_write

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry, Manifest
    from rtgen.torch_backend.lanes import Lane
    from rtgen.torch_backend.programs import Program

_PREPARATION: Final = -1
"""Kind of work, beside those of a program's executions."""


class TorchSession:
    """A program, its lane, and its buffers: tensors that stay where they are until the size changes."""

    def __init__(self, component: ComponentEntry, program: Program, lane: Lane, manifest: Manifest) -> None:
        self.component = component
        self.lane = lane
        self._program: Program | None = program
        self._manifest = manifest
        self._table: BufferTable[Tensor] | None = None
        self._numbers: dict[str, int] = {}
        self._is_prepared = False

    def allocate(self, sizes: Mapping[str, int]) -> None:
        choose_profile(self._manifest.profiles, sizes, self._manifest.model.size_step)
        self._release()
        self._table = BufferTable(self.component, sizes, self._zeros)

    def write(self, name: str, value: Array) -> None:
        table = self._buffers
        check_write(name, value, *table.specs[name])
        if name in self._running.host_numbers:
            self._numbers[name] = int(value.item())
        if name in self._running.prepared_from:
            self._is_prepared = False
        self.lane.upload(table.current(name), value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        if not isinstance(source, TorchSession):
            raise TypeError("copy() works between sessions of one backend")
        if name in (*self._running.host_numbers, *self._running.prepared_from):
            raise ValueError(f"'{name}' is written by the host")
        check_copy(name, self._buffers.specs[name], source._buffers.specs[source_name])
        self.lane.follow(source.lane)
        with self.lane.entered():
            self._buffers.current(name).copy_(source._buffers.current(source_name))
        source.lane.follow(self.lane)  # nor may it be overwritten before

    def run(self) -> None:
        if self._running.prepared_from and not self._is_prepared:
            self.lane.execute(_PREPARATION, self._prepare)
            self._is_prepared = True
        self.lane.execute(self._running.kind(self._numbers), self._execute)

    def read(self, name: str) -> Array:
        return self.lane.download(self._buffers.current(name))

    def reset(self) -> None:
        with self.lane.entered():
            for state in self._buffers.states():
                state.zero_()

    def close(self) -> None:
        if self._program is not None:
            self._release()
        self._program = None

    @property
    def _buffers(self) -> BufferTable[Tensor]:
        if self._table is None:
            raise ValueError(f"{self.component.file} has no buffers: call allocate() first")
        return self._table

    @property
    def _running(self) -> Program:
        if self._program is None:
            raise ValueError(f"{self.component.file} is closed")
        return self._program

    def _prepare(self) -> None:
        self._running.prepare(self._buffers.bound(0))

    def _execute(self) -> None:
        tensors = self._buffers.bound(0)
        for name, value in self._running(tensors, self._numbers).items():
            tensors[name].copy_(value)

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return self.lane.zeros(shape, dtype)

    def _release(self) -> None:
        self.lane.release()
        self._table, self._numbers, self._is_prepared = None, {}, False
