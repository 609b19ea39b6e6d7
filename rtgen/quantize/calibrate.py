"""Calibrated quantization of a denoiser, block by block: from recorded streams to the files of a stage.

For each block: take the recorded passes through it, sample what its linear layers are given, quantize them, measure
what each does to the block's output. Only then is the next block looked at. Which layers stay as they are is decided at
the end, when all are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from torch import nn

from rtgen.config.kv_cache import kv_cache_of
from rtgen.errors import CheckpointError
from rtgen.models.registry import load
from rtgen.quantize.layered import LayeredDenoiser
from rtgen.quantize.output import COMPONENT, LayerFiles
from rtgen.quantize.replay import BlockInputs, Replay
from rtgen.quantize.result import LayerResult, QuantizationResult
from rtgen.quantize.rounding import QuantizedLinear, quantize_group
from rtgen.quantize.samples import InputGroup, SampleCollector
from rtgen.quantize.selection import linear_shapes, reasons_to_keep
from rtgen.quantize.sensitivity import Measured, Probe, block_loss, most_sensitive

if TYPE_CHECKING:
    from torch import Tensor

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Quantization, RecipeConfig
    from rtgen.models.dit import Block, CausalVideoDiT
    from rtgen.quantize.calibration_set import CalibrationSet
    from rtgen.quantize.device import Device

Advance = Callable[[float, str], None]
"""Told the fraction that is done and what comes next."""

ROWS: Final = 8192
"""Rows of each layer's input, from all recorded passes, that quantization works with."""
PROBES: Final = 3
"""Streams on whose last recorded chunk the layers' effect on their block is measured."""


def calibrate(
    config: ModelConfig,
    weights: Path,
    recorded: CalibrationSet,
    recipe: RecipeConfig,
    digest: str,
    folder: Path,
    device: Device,
    advance: Advance,
) -> None:
    """Write the quantized denoiser and its ``quantization.json`` into ``folder``. ``digest`` is that of the set.

    Raises UsageError for a model without a matrix to quantize, CheckpointError for weights that cannot be quantized,
    MissingDependencyError without ModelOpt where the recipe needs it.
    """
    settings = recipe.quantization
    assert settings is not None
    version = None
    if settings.needs_modelopt:
        from rtgen.quantize.modelopt_driver import require_modelopt

        advance(0.0, "loading ModelOpt")
        version = require_modelopt()
    model, stored = load(COMPONENT, config, weights, "float16")
    reasons = reasons_to_keep(linear_shapes(model), settings)
    with TemporaryDirectory(dir=folder) as scratch:
        files = LayerFiles(Path(scratch))
        walk = _BlockWalk(config, model, recorded, recipe, device, files)  # type: ignore[arg-type]
        for layer in range(config.denoiser.layers):
            advance(layer / config.denoiser.layers, f"block {layer + 1} of {config.denoiser.layers}")
            prefix = f"blocks.{layer}."
            walk.block(prefix, {name for name, reason in reasons.items() if name.startswith(prefix) and not reason})
        layers = decided(reasons, linear_shapes(model), walk.results, walk.measured, settings)
        result = QuantizationResult(
            recipe=recipe.name,
            algorithm=settings.algorithm,
            modelopt=version,
            calibration=digest,
            layers=layers,
        )
        files.write(folder, result, stored)
    advance(1.0, "")


def decided(
    reasons: dict[str, str],
    shapes: dict[str, tuple[int, int]],
    results: dict[str, LayerResult],
    measured: Sequence[Measured],
    settings: Quantization,
) -> tuple[LayerResult, ...]:
    """All linear layers in the model's order: quantized, excluded, or kept for their measured sensitivity."""
    kept = {} if settings.sensitivity is None else most_sensitive(measured, settings.sensitivity.at_most)
    losses = {layer.name: layer.loss for layer in measured}
    found = []
    for name, (rows, columns) in shapes.items():
        reason = reasons[name]
        if name in kept:
            reason = (
                f"quantized, it alone moves its block's output by {losses[name] ** 0.5:.2%}: number {kept[name]} of "
                f"{len(measured)} for its size"
            )
        if reason:
            snr = results[name].snr_db if name in results else None
            found.append(LayerResult(name=name, weights="float", elements=rows * columns, reason=reason, snr_db=snr))
        else:
            found.append(results[name])
    return tuple(found)


class _BlockWalk:
    """The state that goes from block to block."""

    def __init__(
        self,
        config: ModelConfig,
        model: CausalVideoDiT,
        recorded: CalibrationSet,
        recipe: RecipeConfig,
        device: Device,
        files: LayerFiles,
    ) -> None:
        assert recipe.quantization is not None
        self.results: dict[str, LayerResult] = {}
        self.measured: list[Measured] = []
        self._settings, self._files = recipe.quantization, files
        self._layered = LayeredDenoiser(model, device, resident=False)
        self._replay = Replay(config, recorded, self._layered.shell, device, kv_cache_of(config, recipe))
        sampled = sum(passes.is_recorded for passes in self._replay.passes)
        self._rows_per_call = -(-ROWS // sampled)
        streams = {round(number * (len(recorded.streams) - 1) / max(1, PROBES - 1)) for number in range(PROBES)}
        self._probed = {(stream, recorded.chunks[-1]) for stream in streams}

    def block(self, prefix: str, wanted: set[str]) -> None:
        """Quantize and measure the layers ``wanted`` (checkpoint names) of one block, and go on to the next."""
        layer = int(prefix.split(".")[1])
        block = self._layered.block(layer)
        names = {name.removeprefix(prefix).removesuffix(".weight") for name in wanted}
        groups, probes = self._observe(block, names, layer)
        linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        for group in groups:
            for made in self._quantize(group, linears, prefix):
                module = linears[made.result.name.removeprefix(prefix).removesuffix(".weight")]
                loss = block_loss(block, module, made, probes)
                self.measured.append(Measured(made.result.name, made.result.elements, loss))
                self.results[made.result.name] = made.result
                self._files.add(made.result.name, made.tensors)

    def _observe(self, block: Block, names: set[str], seed: int) -> tuple[list[InputGroup], list[Probe]]:
        """Take the recorded passes through a block: what its layers are given, and inputs and outputs to measure on."""
        collector = SampleCollector(block, names, self._rows_per_call, seed)
        probes: list[Probe] = []
        upcoming = iter([*self._replay.passes[1:], None])
        collector.next_call(is_sampled=self._replay.passes[0].is_recorded)

        def observe(inputs: BlockInputs, output: Tensor) -> None:
            if (inputs.tag.stream, inputs.tag.chunk) in self._probed:
                probes.append(Probe(inputs, output))
            following = next(upcoming)
            collector.next_call(is_sampled=following is not None and following.is_recorded)

        with collector.collecting():
            self._replay.run(block, observe)
        return collector.groups, probes

    def _quantize(self, group: InputGroup, linears: dict[str, nn.Linear], prefix: str) -> list[QuantizedLinear]:
        assert group.amax is not None
        chosen = {f"{prefix}{name}.weight": linears[name] for name in group.names}
        try:
            return quantize_group(chosen, group.inputs, group.amax, self._settings)
        except ValueError as error:
            raise CheckpointError(f"{prefix}{group.names[0]} cannot be quantized: {error}") from error
