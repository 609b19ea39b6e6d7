"""Two backends behind the interface of one: both get the same inputs, and what they make of them is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rtgen.build.ring_values import comparable_states
from rtgen.runtime.session import Array, Backend, Session

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry

Observer = Callable[[str, str, Array, Array], None]
"""Is told the component, the tensor, the candidate's value and the reference's."""


class LockstepBackend:
    """Lets the ordinary pipeline drive a candidate and a reference at once.

    What the pipeline reads, or copies from one component to the next, is the reference's: so the inputs of every run
    are equal on both sides, and a difference is the fault of that run, or of the states, which each side keeps.
    """

    name = "lockstep"

    def __init__(self, candidate: Backend, reference: Backend, observe: Observer) -> None:
        self.device = candidate.device
        self._candidate, self._reference, self._observe = candidate, reference, observe
        self._sessions: list[LockstepSession] = []

    def open(self, component: str) -> LockstepSession:
        pair = self._candidate.open(component), self._reference.open(component)
        session = LockstepSession(component, *pair, self._observe)
        self._sessions.append(session)
        return session

    def observe_states(self) -> None:
        """Compare the states as they are now: the sum of all runs since the last reset."""
        for session in self._sessions:
            session.observe_states()

    def close(self) -> None:
        self._candidate.close()
        self._reference.close()


class LockstepSession:
    """One component on both sides."""

    def __init__(self, name: str, candidate: Session, reference: Session, observe: Observer) -> None:
        self.component: ComponentEntry = candidate.component
        self.candidate, self.reference = candidate, reference
        self._name, self._observe = name, observe
        states = {state.output for state in self.component.states}
        self._results = [tensor.name for tensor in self.component.outputs if tensor.name not in states]

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self.candidate.allocate(sizes)
        self.reference.allocate(sizes)

    def write(self, name: str, value: Array) -> None:
        self.candidate.write(name, value)
        self.reference.write(name, value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        self.write(name, source.read(source_name))

    def run(self) -> None:
        self.candidate.run()
        self.reference.run()
        for name in self._results:
            self._observe(self._name, name, self.candidate.read(name), self.reference.read(name))

    def observe_states(self) -> None:
        for name, read in comparable_states(self.component):
            # Rings and past frames are large: only one of them is on the host at a time.
            self._observe(self._name, name, read(self.candidate), read(self.reference))

    def read(self, name: str) -> Array:
        return self.reference.read(name)

    def reset(self) -> None:
        self.candidate.reset()
        self.reference.reset()

    def close(self) -> None:
        self.candidate.close()
        self.reference.close()
