"""How a recipe represents each operation: operations by number type and bytes moved, still without a GPU's rates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch

from rtgen.config.kv_cache import ring_frames
from rtgen.config.recipe import Quantization
from rtgen.errors import UsageError
from rtgen.estimate.efficiencies import Kind, NumberType
from rtgen.estimate.operations import Attention, Convolution, Elementwise, Operation, Part, Product
from rtgen.estimate.setting import Setting
from rtgen.quantize.selection import reasons_to_keep

SCALE_BITS: Mapping[str, int] = {"int4": 16, "fp4": 8, "int8": 16, "fp8": 32}
"""Of a shared scale: float16, but FP8 for NVFP4's blocks, and one float32 for an FP8 matrix."""

FORMAT_BITS: Mapping[str, int] = {"int4": 4, "fp4": 4, "int8": 8, "fp8": 8}


@dataclass(frozen=True)
class Work:
    """What one kernel computes and moves."""

    part: Part
    kind: Kind
    operations: Mapping[NumberType, float]
    bytes: float


@dataclass(frozen=True)
class Numerics:
    """A setting's number formats."""

    setting: Setting
    kept: Mapping[str, str]
    """Why the recipe leaves a matrix of the denoiser as it is, by its name; empty where it quantizes it."""

    @property
    def quantization(self) -> Quantization | None:
        return self.setting.recipe.quantization

    @property
    def precision(self) -> NumberType:
        return "fp16" if self.setting.recipe.precision == "float16" else "fp32"

    @property
    def item(self) -> int:
        """Bytes of a number in the recipe's precision."""
        return self.setting.precision_bits // 8

    @property
    def kv_bytes(self) -> float:
        """Of a number in the K/V ring, with its part of the float16 scale that a head's numbers share."""
        scale = 16 / self.setting.model.denoiser.head_dim if self.setting.ring.is_coded else 0
        return (self.setting.kv_bits + scale) / 8

    def seen(self, keys: int) -> float:
        """Keys of the ring that a pass looks at, of ``keys`` in a full window: pruned frames are one token each."""
        window, live = self.setting.model.cache.window, ring_frames(self.setting.model, self.setting.ring)
        return keys * live / window + (window - live)

    def quantizes(self, product: Product) -> bool:
        return self.kept.get(product.name, "it is not the denoiser's") == ""

    @property
    def share_kept(self) -> float:
        """Of the weights meant to be quantized: as many as the recipe may leave for their sensitivity are left."""
        sensitivity = None if self.quantization is None else self.quantization.sensitivity
        return 0.0 if sensitivity is None else sensitivity.at_most


def numerics_of(setting: Setting, products: Iterable[Product]) -> Numerics:
    """The formats of a setting, whose denoiser has these linear layers. Raises UsageError if none can be quantized."""
    quantization = setting.recipe.quantization
    shapes = {layer.name: (layer.outputs, layer.inputs) for layer in products if layer.name != _NOT_LINEAR}
    kept = dict.fromkeys(shapes, "the recipe quantizes nothing")
    if quantization is not None:
        kept = reasons_to_keep(shapes, quantization)
    return Numerics(setting, kept)


_NOT_LINEAR = "patch_embedding.weight"
"""A convolution in the checkpoint, and never quantized."""


def weight_bytes(product: Product, numerics: Numerics) -> float:
    """Of a matrix as it is stored, with scales and low-rank branch."""
    plain = product.weights * numerics.item
    quantization = numerics.quantization
    if quantization is None or not numerics.quantizes(product):
        return plain
    form = quantization.weights
    scales = SCALE_BITS[form.format] / (form.block or product.inputs)
    coded = product.weights * (FORMAT_BITS[form.format] + scales) / 8
    rank = 0 if quantization.low_rank is None else quantization.low_rank.rank
    branch = rank * (product.inputs + product.outputs) * numerics.item
    return numerics.share_kept * plain + (1 - numerics.share_kept) * (coded + branch)


@singledispatch
def work(operation: Operation, numerics: Numerics) -> Work:
    """What an operation computes and moves: each tensor once, as caches hold what is needed again."""
    raise UsageError(f"unknown operation {operation!r}")


@work.register
def _(operation: Product, numerics: Numerics) -> Work:
    quantization = numerics.quantization
    rows, item = operation.rows, numerics.item
    output = rows * operation.outputs * item
    stored = weight_bytes(operation, numerics)
    plain = {numerics.precision: float(operation.operations)}
    if quantization is None or not numerics.quantizes(operation):
        return Work(operation.part, "linear", plain, rows * operation.inputs * item + stored + output)
    share, counts = numerics.share_kept, dict(plain)
    input_bytes = float(item)
    if quantization.activations is not None:
        form = quantization.activations.format
        counts = {numerics.precision: share * operation.operations, form: (1 - share) * operation.operations}
        scales = SCALE_BITS[form] / quantization.activations.group if quantization.activations.group else 0
        input_bytes = share * item + (1 - share) * (FORMAT_BITS[form] + scales) / 8
    if quantization.low_rank is not None:
        branch = 2 * rows * quantization.low_rank.rank * (operation.inputs + operation.outputs)
        counts[numerics.precision] += (1 - share) * branch
    return Work(operation.part, "linear", counts, rows * operation.inputs * input_bytes + stored + output)


@work.register
def _(operation: Attention, numerics: Numerics) -> Work:
    item, kv_item, keys = numerics.item, float(numerics.item), float(operation.keys)
    kind: Kind = "attention"
    counts: dict[NumberType, float] = {numerics.precision: operation.operations}
    if operation.over_ring and numerics.setting.ring.is_coded:
        kind = "int4_ring_attention" if numerics.setting.kv_bits == 4 else "int8_ring_attention"
        kv_item, keys = numerics.kv_bytes, numerics.seen(operation.keys)
        half = operation.operations / 2 * keys / operation.keys
        counts = {"int8": half, "fp16_sums": half}  # queries times keys, then weights times values
    written = 2 * operation.queries if operation.over_ring else 0  # the chunk's own keys and values
    rows = 2 * operation.queries * item + (2 * keys + written) * kv_item
    return Work(operation.part, kind, counts, operation.times * operation.width * rows)


@work.register
def _(operation: Convolution, numerics: Numerics) -> Work:
    elements = operation.read + operation.weights + operation.positions * operation.outputs
    counts: dict[NumberType, float] = {numerics.precision: operation.operations}
    return Work(operation.part, "convolution", counts, elements * numerics.item)


@work.register
def _(operation: Elementwise, numerics: Numerics) -> Work:
    return Work(operation.part, "bandwidth", {}, operation.wide * 4 + operation.narrow * numerics.item)
