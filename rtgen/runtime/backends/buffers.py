"""Which buffer a tensor name means, now and in each of the two turns of swapped states."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np

from rtgen.engine.manifest import ComponentEntry, TensorEntry, resolve_shape
from rtgen.errors import PackageInvalidError
from rtgen.runtime.session import Array

Buffer = TypeVar("Buffer")
Shape = tuple[int, ...]


class BufferTable(Generic[Buffer]):
    """The buffers of a component at one size.

    A swapped state has two buffers that change places after each run, so there are two *turns*, 0 and 1; everything
    else has the same buffer in both. A state's two names mean the same buffer between runs: what was written last,
    which is what the next run reads.
    """

    def __init__(
        self,
        component: ComponentEntry,
        sizes: Mapping[str, int],
        allocate: Callable[[Shape, "np.dtype[np.generic]"], Buffer],
    ) -> None:
        """Raises PackageInvalidError for a state whose input and output differ."""
        self.turn = 0
        self.specs = {tensor.name: _spec(tensor, sizes) for tensor in (*component.inputs, *component.outputs)}
        self.state_outputs: dict[str, str] = {}
        self._pairs: dict[str, tuple[Buffer, Buffer]] = {}
        for state in component.states:
            if self.specs[state.input] != self.specs[state.output]:
                raise PackageInvalidError(f"{component.file}: state '{state.input}' and '{state.output}' differ")
            first = allocate(*self.specs[state.input])
            second = allocate(*self.specs[state.input]) if state.update == "swap" else first
            self._pairs[state.input], self._pairs[state.output] = (first, second), (second, first)
            self.state_outputs[state.output] = state.input
        for name, spec in self.specs.items():
            if name not in self._pairs:
                buffer = allocate(*spec)
                self._pairs[name] = (buffer, buffer)
        self.turns = 2 if any(first is not second for first, second in self._pairs.values()) else 1

    def bound(self, turn: int) -> dict[str, Buffer]:
        """The buffer of every input and output during a run in ``turn``."""
        return {name: pair[turn] for name, pair in self._pairs.items()}

    def current(self, name: str) -> Buffer:
        """The buffer that ``name`` means between runs. Raises KeyError for an unknown name."""
        return self._pairs[self.state_outputs.get(name, name)][self.turn]

    def advance(self) -> None:
        """Take the next turn: each state's output becomes its input."""
        self.turn = (self.turn + 1) % self.turns

    def states(self) -> list[Buffer]:
        """Every buffer that holds a state."""
        return [buffer for name in self.state_outputs for buffer in self._pairs[name]]

    def all(self) -> list[Buffer]:
        """Every buffer once."""
        return list({id(buffer): buffer for pair in self._pairs.values() for buffer in pair}.values())


def check_copy(
    name: str, target: tuple[Shape, "np.dtype[np.generic]"], source: tuple[Shape, "np.dtype[np.generic]"]
) -> None:
    """Refuse a copy between buffers of other shapes or types."""
    if target != source:
        raise ValueError(f"'{name}' takes {target[1]}{list(target[0])}, got {source[1]}{list(source[0])}")


def zeros(shape: Shape, dtype: "np.dtype[np.generic]") -> Array:
    """A host buffer."""
    return np.zeros(shape, dtype)


def _spec(tensor: TensorEntry, sizes: Mapping[str, int]) -> "tuple[Shape, np.dtype[np.generic]]":
    return resolve_shape(tensor.shape, sizes), np.dtype(tensor.dtype)
