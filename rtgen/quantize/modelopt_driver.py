"""The one door to NVIDIA ModelOpt: what it finds out about linear layers from what they are given.

Layers that share an input are calibrated as one, their weights one above the other, so that they get one pre-scale.
ModelOpt runs on the sampled rows alone, so it needs no model and little memory. Rounding weights, and measuring what is
lost, is not done here.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rtgen.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rtgen.config.recipe import Quantization

SMOOTHING_ALPHAS: Final = (0.3, 0.5, 0.7)
"""Candidates for the share of an outlier that smoothing moves from the input into the weight (SmoothQuant)."""

ALPHA_STEP: Final = 0.1
"""Of ModelOpt's search for AWQ scales."""

AWQ_ROWS: Final = 2048
"""Rows, at least, that the search is given; it takes all of them through the layer once for each step."""

NUMBER_FORMATS: Final[Mapping[str, Any]] = {"int4": 4, "int8": 8, "fp8": (4, 3)}


@dataclass(frozen=True)
class Calibrated:
    """What ModelOpt found for the layers of one input."""

    pre_scale: Tensor | None
    """[in] float32, multiplies the input; None: the input stays as it is."""
    input_amax: float | None
    """Greatest magnitude of the input after the pre-scale; None where the recipe leaves activations alone."""


def require_modelopt() -> str:
    """The version of ModelOpt. Raises MissingDependencyError unless it can be imported."""
    try:
        with _quiet():
            import modelopt
            import modelopt.torch.quantization

        return str(modelopt.__version__)
    except ImportError as error:
        raise MissingDependencyError(
            f"calibration needs NVIDIA ModelOpt, which does not load: {error}", hint='pip install "rtgen[compile]"'
        ) from error


def calibrate_group(
    weights: Sequence[Tensor], inputs: Tensor, amax: Tensor, settings: Quantization
) -> list[Calibrated]:
    """Candidates for the layers ``weights`` ([out, in] each) that are given ``inputs`` [n, in]; the first has no
    pre-scale.

    ``amax`` [in] is the greatest magnitude of each channel over everything that was seen, of which ``inputs`` are some
    rows. All tensors are float32 and on one device.
    """
    import torch

    weight = torch.cat(list(weights))
    extremes = amax[None, :]  # a row more, so that the greatest magnitudes are those of all rows
    has_activations = settings.activations is not None
    plain = _run(weight, extremes, _config("max", settings)) if has_activations else None
    found = [Calibrated(None, _input_amax(plain) if plain is not None else None)]
    if settings.algorithm in ("awq", "svdquant"):
        few = inputs[:: max(1, len(inputs) // AWQ_ROWS)]
        pre_scale = _pre_scale(_run(weight, few, _config("awq", settings)))
        found.append(Calibrated(pre_scale, float((amax * pre_scale).max()) if has_activations else None))
    if settings.algorithm in ("smoothquant", "svdquant") and has_activations:
        for alpha in SMOOTHING_ALPHAS:
            smoothed = _run(weight, extremes, _config("smoothquant", settings, alpha))
            found.append(Calibrated(_pre_scale(smoothed), _input_amax(smoothed)))
    return found


def _config(method: str, settings: Quantization, alpha: float = 0.5) -> dict[str, Any]:
    """ModelOpt's configuration of a quantized linear layer.

    AWQ searches with the weights alone rounded, to INT4 in the recipe's blocks: ModelOpt's own rounding to NVFP4 needs
    a CUDA GPU, and which of the scales serves the recipe's format is measured afterwards. SmoothQuant is for INT8.
    """
    weights = settings.weights
    weight: dict[str, Any] = {"num_bits": NUMBER_FORMATS.get(weights.format, 8), "axis": None}
    activation: dict[str, Any] | None = {"num_bits": (4, 3) if weights.format == "fp8" else 8, "axis": None}
    algorithm: Any = "max"
    if method == "awq":
        weight = {"num_bits": 4, "block_sizes": {-1: weights.block, "type": "static"}}
        activation = None
        algorithm = {"method": "awq_lite", "alpha_step": ALPHA_STEP}
    elif method == "smoothquant":
        weight = {"num_bits": 8, "axis": 0}
        algorithm = {"method": "smoothquant", "alpha": alpha}
    elif weights.block is not None:
        weight = {"num_bits": 4, "block_sizes": {-1: weights.block, "type": "static"}}
    return {"quant_cfg": _entries(weight, activation), "algorithm": algorithm}


def _entries(weight: dict[str, Any], activation: dict[str, Any] | None) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weight, "enable": True},
    ]
    if activation is not None:
        entries.append({"quantizer_name": "*input_quantizer", "cfg": activation, "enable": True})
    return entries


def _run(weight: Tensor, inputs: Tensor, config: dict[str, Any]) -> Any:
    """ModelOpt's quantized linear layer after calibration."""
    import torch
    from torch import nn

    with _quiet():
        import modelopt.torch.quantization as quantization

        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
        box = nn.ModuleList([layer])
        forward: Callable[[nn.Module], None] = lambda module: module[0](inputs)  # type: ignore[index]  # noqa: E731
        return quantization.quantize(box, config, forward)[0]


def _pre_scale(layer: Any) -> Tensor:
    scale: Tensor = layer.input_quantizer.pre_quant_scale.detach().float().flatten().clone()
    return scale


def _input_amax(layer: Any) -> float:
    return float(layer.input_quantizer.amax)


@contextlib.contextmanager
def _quiet() -> Any:
    """ModelOpt prints its progress to stdout, which is for data, and warns of optional packages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
