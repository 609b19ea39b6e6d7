"""Which layers are worth leaving unquantized: those whose error is felt most, for their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rtgen.quantize.simulate import SimulatedLinear

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rtgen.models.dit import Block
    from rtgen.quantize.replay import BlockInputs
    from rtgen.quantize.rounding import QuantizedLinear


@dataclass(frozen=True)
class Measured:
    """A quantized layer and what it does to its block."""

    name: str
    elements: int
    loss: float
    """Squared error of the block's output with this layer alone quantized, relative to the output's square."""


@dataclass(frozen=True)
class Probe:
    """Inputs of a block and its exact output."""

    inputs: BlockInputs
    output: Tensor


@torch.no_grad()
def block_loss(block: Block, linear: nn.Linear, quantized: QuantizedLinear, probes: Sequence[Probe]) -> float:
    """The :class:`Measured` loss of one layer of a block. The sum of all residual connections up to here is what later
    blocks normalise, so relative errors of different blocks compare."""
    simulated = SimulatedLinear(quantized.result, quantized.tensors, linear.bias)
    handle = simulated.replace(linear)
    try:
        errors = sum(float((probe.inputs.run(block) - probe.output).square().sum()) for probe in probes)
    finally:
        handle.remove()
    signal = sum(float(probe.output.square().sum()) for probe in probes)
    return errors / signal if signal > 0 else 0.0


def most_sensitive(layers: Sequence[Measured], at_most: float) -> dict[str, int]:
    """The layers to leave as they are, by name, each with its rank (1: the most sensitive for its size).

    Those with the greatest loss a weight come first, as long as they hold at most the share ``at_most`` of all weights.
    A layer that would exceed it is passed over; smaller ones may follow.
    """
    budget = at_most * sum(layer.elements for layer in layers)
    ordered = sorted(layers, key=lambda layer: (-layer.loss / layer.elements, layer.name))
    kept: dict[str, int] = {}
    for rank, layer in enumerate(ordered, start=1):
        if layer.elements <= budget:
            budget -= layer.elements
            kept[layer.name] = rank
    return kept
