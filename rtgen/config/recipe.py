"""Schema of ``configs/recipes/*.toml``: how numbers are represented."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rtgen.config.base import Section
from rtgen.config.gpu import ENGINE_COMPILERS, Compiler

Precision = Literal["float16", "float32"]
Algorithm = Literal["none", "max", "smoothquant", "awq", "svdquant"]
ComputeCapability = Annotated[str, StringConstraints(pattern=r"^\d+\.\d$")]


class WeightFormat(Section):
    """How the matrices of linear layers are stored."""

    format: Literal["int4", "int8", "fp8", "fp4"]
    block: int | None = Field(default=None, gt=0)
    """Weights of a row that share a scale; absent: one scale an output channel (int8) or a matrix (fp8)."""

    @model_validator(mode="after")
    def _block_of_the_format(self) -> Self:
        allowed = {"int4": (32, 64, 128), "int8": (None,), "fp8": (None,), "fp4": (16,)}[self.format]
        if self.block not in allowed:
            names = " or ".join("none" if block is None else str(block) for block in allowed)
            raise ValueError(f"block of {self.format} weights is {names}")
        return self


class ActivationFormat(Section):
    """What the inputs of quantized layers are rounded to."""

    format: Literal["int8", "fp8", "fp4", "int4"]
    group: int | None = Field(default=None, gt=0)
    """Numbers of a token that share a scale found at run time; absent: one calibrated scale a tensor."""
    rotation: bool = False
    """Whether a layer's input may be rotated by a Hadamard matrix, in groups; it is where its error is smaller so."""

    @model_validator(mode="after")
    def _group_of_the_format(self) -> Self:
        allowed = {"int4": (64,), "int8": (None,), "fp8": (None,), "fp4": (16,)}[self.format]
        if self.group not in allowed:
            names = " or ".join("none" if group is None else str(group) for group in allowed)
            raise ValueError(f"group of {self.format} activations is {names}")
        if self.rotation and self.format != "int4":
            raise ValueError("rotation is for int4 activations")
        return self


class LowRank(Section):
    """A branch in the recipe's precision that carries the largest singular values of each weight (SVDQuant)."""

    rank: int = Field(gt=0, le=256)


class Sensitivity(Section):
    """Layers whose measured loss is worst stay in the recipe's precision."""

    at_most: float = Field(gt=0, lt=1)
    """Greatest share of the weights meant to be quantized that may stay."""


class Quantization(Section):
    """Which matrices of the denoiser are quantized, to what, and how the scales are found."""

    algorithm: Algorithm
    """``none``: round to nearest. The others calibrate the blocks' linear layers on what they see in streams."""
    minimum_elements: int = Field(default=4096, ge=0)
    """Smaller matrices stay as they are."""
    exclude: tuple[str, ...] = ()
    """Names in the checkpoint, with ``*`` and ``?``, of matrices that stay as they are."""
    weights: WeightFormat
    activations: ActivationFormat | None = None
    """None: activations stay in the recipe's precision."""
    low_rank: LowRank | None = None
    sensitivity: Sensitivity | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether scales depend on what the model sees. INT8 activations that are not are scaled at run time."""
        return self.algorithm != "none"

    @property
    def needs_modelopt(self) -> bool:
        """Whether calibration needs NVIDIA ModelOpt, whose search does not see what INT4 activations lose."""
        return self.is_calibrated and (self.activations is None or self.activations.format != "int4")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        formats = (self.weights.format, None if self.activations is None else self.activations.format)
        if not self.is_calibrated and (formats not in (("int4", None), ("int8", "int8")) or self.sensitivity):
            raise ValueError("algorithm 'none' is for int4 weights alone, or int8 weights and activations")
        if formats[1] == "int4" and (formats[0] != "int4" or self.weights.block != 64):
            raise ValueError("int4 activations need int4 weights in blocks of 64")
        if (self.algorithm == "svdquant") != (self.low_rank is not None):
            raise ValueError("algorithm 'svdquant' and the section low_rank go together")
        if self.algorithm == "smoothquant" and (self.activations is None or self.activations.format != "int8"):
            raise ValueError("algorithm 'smoothquant' needs int8 activations")
        if self.algorithm in ("awq", "svdquant") and self.weights.block is None:
            raise ValueError(f"algorithm '{self.algorithm}' needs weights in blocks")
        return self


class DecoderFormat(Section):
    """What the decoder's convolutions compute on (``rtgen.export.coded_decoder``)."""

    format: Literal["int8"]
    """Codes of activations with calibrated scales, one a tensor, and of weights, one scale an output channel."""


class KVCacheFormat(Section):
    """How the K/V ring keeps keys and values (``rtgen.plugins.quantized_kv_cache_attention``)."""

    bits: Literal[16, 8, 4] = 16
    """Of a number in the ring; 16: the recipe's precision, without codes."""
    keep: float = Field(default=1.0, gt=0, le=1)
    """Share of the ring's frames that a pass sees whole; each of the others is seen as one pooled token a head."""
    recent: float = Field(default=0.25, ge=0, le=1)
    """Share of the ring's frames, the newest ones, that are always seen whole."""

    @property
    def is_coded(self) -> bool:
        """Whether the ring holds codes and scales."""
        return self.bits < 16

    @model_validator(mode="after")
    def _frames_of_codes(self) -> Self:
        if self.keep < 1 and not self.is_coded:
            raise ValueError("keep below 1 needs a ring of 8 or 4 bits")
        return self


class Targets(Section):
    """What the fidelity report holds a recipe to, on the bundled model."""

    psnr_db: float | None = Field(default=None, gt=0)
    """Least PSNR against FP16 with the same seeds over the first five seconds."""
    attribute_points: float = Field(default=2.0, gt=0)
    """Percentage points of attribute accuracy that may be lost to FP16."""


class RecipeConfig(Section):
    """A numeric recipe: the element type that components are exported in, what is quantized, and where it can run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    precision: Precision
    compilers: tuple[Compiler, ...] = Field(min_length=1)
    """The compilers that accept it."""
    compute_capabilities: tuple[ComputeCapability, ...] = ()
    """Those it can run on; empty for recipes of the processor."""
    quantization: Quantization | None = None
    """None leaves all weights and activations in ``precision``."""
    decoder: DecoderFormat | None = None
    """None leaves the decoder in ``precision``; so does a model with the tiny decoder."""
    kv_cache: KVCacheFormat = KVCacheFormat()
    targets: Targets = Targets()

    @model_validator(mode="after")
    def _capabilities_of_gpus(self) -> Self:
        is_for_gpus = any(compiler in ENGINE_COMPILERS for compiler in self.compilers)
        if is_for_gpus != bool(self.compute_capabilities):
            raise ValueError("compute_capabilities belong to recipes for tensorrt_rtx and tensorrt, and to no others")
        return self

    @model_validator(mode="after")
    def _decoder_of_processors(self) -> Self:
        if self.decoder is not None and (self.compilers != ("onnxruntime",) or self.quantization is None):
            raise ValueError("the section decoder is for recipes of onnxruntime alone that have a section quantization")
        return self

    @model_validator(mode="after")
    def _precision_of_the_operator(self) -> Self:
        activations = None if self.quantization is None else self.quantization.activations
        if activations is not None and activations.format == "int4" and self.precision != "float16":
            raise ValueError("int4 activations need precision 'float16'")
        return self
