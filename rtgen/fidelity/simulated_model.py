"""A quantized denoiser in torch: float32 arithmetic, with every rounding of the recipe put in by hand.

What is rounded: the inputs and outputs of linear layers to float16, as the engines store them; the weights and
activations of quantized layers to the codes and scales that the quantize step wrote. Sums of products are float32, as
they are on the GPUs. What is not: attention, norms and the residual stream, which the engines compute in float32 or
nearly so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.errors import CheckpointError
from rtgen.quantize.formats import dequantize
from rtgen.quantize.simulate import SimulatedLinear

if TYPE_CHECKING:
    from rtgen.config.recipe import Precision
    from rtgen.quantize.result import LayerResult, QuantizationResult

Model = TypeVar("Model", bound=nn.Module)

_SUFFIX: Final = ".weight"
_LEAST_STEP: Final = torch.finfo(torch.float16).tiny
"""Of a scale of activations (``rtgen.passes.quantize_weights.half_step``)."""


def to_float16(x: Tensor) -> Tensor:
    """The float32 numbers nearest to ``x`` that float16 has."""
    return x.half().float()


def as_it_is(x: Tensor) -> Tensor:
    """No rounding: for recipes that compute in float32."""
    return x


_ROUNDING: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"float16": to_float16, "float32": as_it_is}


class RoundedLinear(nn.Module):
    """A linear layer as an engine computes it. Inputs and outputs are float32 numbers that ``precision`` has."""

    weight: Tensor
    """[out, in] float32; of a quantized layer only its type is of use: the model asks for it."""

    def __init__(
        self,
        linear: nn.Linear,
        precision: Precision,
        layer: LayerResult | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> None:
        """``parts``: the stored tensors of ``layer`` by suffix; without ``layer`` the weight stays as it is.

        Raises CheckpointError for codes of another shape, KeyError for a tensor that is missing.
        """
        super().__init__()
        self.layer, self.rounded = layer, _ROUNDING[precision]
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.weight = linear.weight.detach().float() if layer is None else torch.empty(0)
        self._simulated: SimulatedLinear | None = None
        if layer is not None and parts is not None:
            shape = dequantize(layer.weights, parts).shape
            if shape != linear.weight.shape:
                raise CheckpointError(f"its codes are {list(shape)}, the matrix is {list(linear.weight.shape)}")
            self._simulated = SimulatedLinear(layer, _as_in_the_graph(layer, parts, self.rounded), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        x = self.rounded(x)
        y = F.linear(x, self.weight, self.bias) if self._simulated is None else self._simulated(x)
        return self.rounded(y)


def _as_in_the_graph(
    layer: LayerResult, parts: Mapping[str, Tensor], rounded: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]:
    """The stored tensors with what the graph's own precision makes of calibrated scales."""
    if "input_scale" not in parts or layer.activations == "fp4":  # its global scale stays float32
        return parts
    return {**parts, "input_scale": rounded(parts["input_scale"].clamp_min(_LEAST_STEP))}


def simulate(
    model: Model, precision: Precision, result: QuantizationResult | None = None, weights: Path | None = None
) -> Model:
    """Replace every linear layer of ``model`` (float32 weights) by a simulated one, in place, and return it.

    ``weights`` is the file that the quantize step wrote beside ``result``. Without both, nothing is quantized: with
    ``precision`` float16 that is FP16 itself. Raises CheckpointError for a file that does not hold what the result
    says.
    """
    layers = () if result is None or weights is None else result.layers
    quantized = {layer.name: layer for layer in layers if layer.weights != "float"}
    linears = {f"{name}{_SUFFIX}": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(quantized.keys() - linears.keys())
    if unknown:
        raise CheckpointError(f"the quantization result names {unknown[0]}, which is no matrix of the model")
    stored = {} if weights is None else _stored(weights, quantized)
    for name, linear in linears.items():
        try:
            simulated = RoundedLinear(linear, precision, quantized.get(name), stored.get(name))
        except KeyError as error:
            raise CheckpointError(f"{weights} lacks the {error.args[0]} of {name}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{weights}: {name}: {error.message}") from error
        parent, _, attribute = name.removesuffix(_SUFFIX).rpartition(".")
        setattr(model.get_submodule(parent), attribute, simulated)
    return model


def _stored(weights: Path, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The stored tensors of each layer by suffix."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    try:
        with safe_open(weights, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118  # it is no dictionary
                name, _, part = stored.rpartition(".")
                if name in found:
                    found[name][part] = file.get_tensor(stored)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights} is not a sound safetensors file: {error}") from error
    return found
