"""What layers are given while a module runs."""

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from rtgen.quantize.samples import SampleCollector


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.o(self.q(x) * self.k(x))


@pytest.fixture
def collected():
    module = Attention()
    collector = SampleCollector(module, {"q", "k", "o"}, rows_per_call=3, seed=0)
    inputs = [torch.randn(2, 5, 8) for _ in range(3)]
    with collector.collecting(), torch.no_grad():
        for index, x in enumerate(inputs):
            collector.next_call(is_sampled=index != 1)
            module(x)
    module(torch.full((1, 1, 8), 1e6))  # nobody looks any more
    return collector, inputs


def test_layers_that_are_given_one_tensor_are_one_group(collected):
    assert [group.names for group in collected[0].groups] == [["q", "k"], ["o"]]


def test_magnitudes_are_those_of_everything_seen_and_rows_those_of_the_sampled_calls(collected):
    group, inputs = collected[0].groups[0], collected[1]
    assert torch.equal(group.amax, torch.cat(inputs).abs().amax(dim=(0, 1)))
    assert group.inputs.shape == (6, 8)
    seen = [{tuple(row) for row in x.reshape(-1, 8).tolist()} for x in inputs]
    rows = [tuple(row) for row in group.inputs.tolist()]
    assert set(rows[:3]) <= seen[0] and set(rows[3:]) <= seen[2] and len(set(rows)) == 6


def test_a_tensor_that_was_freed_makes_no_group_of_strangers():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(20))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) + 1  # each input is freed before a later one is made
            return x

    chain = Chain()
    collector = SampleCollector(chain, {f"layers.{index}" for index in range(20)}, 1, 0)
    with collector.collecting(), torch.no_grad():
        chain(torch.randn(4, 8))
    assert [group.names for group in collector.groups] == [[f"layers.{index}"] for index in range(20)]
