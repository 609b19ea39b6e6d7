from hypothesis import given
from hypothesis import strategies as st

from rtgen.runtime.chunk_memory import ChunkMemory


@given(chunk=st.integers(1, 4), ring=st.integers(1, 6), sink=st.integers(0, 4), spare=st.integers(0, 40))
def test_positions_stay_below_the_limit_and_only_the_sink_comes_nearer(chunk, ring, sink, spare):
    sink = min(sink, max(0, ring - 2))
    window, limit = ring * chunk, ring * chunk + spare
    memory, rebased = ChunkMemory(window, sink * chunk, chunk, limit), 0
    for number in range(60):
        before = memory.position
        if memory.is_at_limit:
            memory.rebase()
            rebased += 1
            assert memory.position <= before
        positions = [position for position, _ in memory.chunks]
        numbers = [remembered for _, remembered in memory.chunks]
        recent = [other for other in range(number) if other >= sink and other > number - (ring - sink)]
        assert numbers == [*range(min(sink, number)), *recent]
        assert positions == sorted(set(positions)) and memory.position + chunk <= limit
        assert all(
            memory.position - place == (number - other) * chunk for place, other in memory.chunks if other >= sink
        )
        assert all(place == other * chunk for place, other in memory.chunks if other < sink)
        memory.add(number)
    assert rebased or 60 * chunk <= limit
