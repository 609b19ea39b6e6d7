"""The manifest of an engine package: everything the runtime wing needs to know, and nothing to execute.

Shapes are symbolic. A dimension is an integer or a sum of products of integers and dimension names, such as
``"12*rows*columns"`` or ``"12*rows*columns+12"``; the base names are ``rows`` and ``columns`` (the token grid of one
latent frame), ``tokens`` (the padded prompt) and whatever else a component declares. :func:`resolve` turns it into a
number.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from rtgen.data_types import ITEM_SIZES, DataType

MANIFEST_NAME = "manifest.json"

Dimension = int | Annotated[str, StringConstraints(pattern=r"^(\d+|[a-z_]+)([*+](\d+|[a-z_]+))*$", max_length=80)]
Component = Literal["text_encoder", "denoiser", "decoder"]
FileName = Annotated[str, StringConstraints(pattern=r"^(kernels/)?[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
"""A plain name, optionally under ``kernels/``: no path of a manifest can leave its package."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = tuple[int, int]


class Entry(BaseModel):
    """A frozen part of the manifest; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorEntry(Entry):
    """One input or output of a component."""

    name: str
    dtype: DataType
    shape: tuple[Dimension, ...]


class StateEntry(Entry):
    """A tensor that lives between runs: the output of one run is the input of the next.

    ``in_place``: both are one buffer. ``swap``: two buffers that change places after each run.
    """

    input: str
    output: str
    update: Literal["in_place", "swap"]


class ComponentEntry(Entry):
    """One engine or ONNX file, or the description of a torch model, and its tensor table."""

    file: FileName
    weights: tuple[FileName, ...] = ()
    """Files with the weights of an ONNX file or a torch model; engines carry theirs."""
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    states: tuple[StateEntry, ...] = ()
    runs_on: Literal["device", "host"] = "device"
    """``host``: loaded only while it is needed. An ONNX file, which ONNX Runtime runs on the processor whether the
    package is one of engines or of graphs; in a package of weights they are brought to the device layer by layer."""


class ProfileEntry(Entry):
    """Frame sizes in pixels (height, width) of one optimization profile, in the engines' order."""

    min: Size
    opt: Size
    max: Size


class FileEntry(Entry):
    """Size in bytes and sha256 of a file of the package."""

    size: int = Field(ge=0)
    sha256: Sha256


class CompilerEntry(Entry):
    name: Literal["tensorrt_rtx", "tensorrt", "onnxruntime", "torch"]
    version: str


class TargetEntry(Entry):
    """The GPU a package was built for."""

    gpu: str
    compute_capability: str | None
    vram_bytes: int


class ModelEntry(Entry):
    """What the pipeline needs of the model config (see ``rtgen.config.model`` for the meaning of each)."""

    name: str
    digest: Sha256
    frames_per_second: int
    example_prompts: tuple[str, ...]
    default_size: Size
    size_step: Size
    latent_channels: int
    spatial_stride: int
    temporal_stride: int
    decoder: Literal["vae", "taehv"]
    dropped_frames: int = Field(ge=0)
    """Frames that the decoder makes at the start of a stream and that do not exist."""
    chunk: int
    window: int
    sink: int
    position_limit: int = Field(gt=0)
    sigmas: tuple[float, ...] = Field(min_length=1)
    """Warped noise levels of the denoise passes, descending from 1 to above 0."""
    sampler: Literal["renoise", "euler"]
    rope_split: tuple[int, int, int]
    rope_theta: float
    prompt_tokens: int
    tokenizer: FileName

    @field_validator("sigmas")
    @classmethod
    def _descending(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if not all(higher > lower for higher, lower in pairwise((1.0 + 1e-6, *sigmas, 0.0))):
            raise ValueError(f"noise levels must descend from 1 to above 0, got {sigmas}")
        return sigmas


class MemoryPlan(Entry):
    """Device memory by term, in bytes; components that run on the host take none."""

    weights: int = Field(ge=0)
    activations: int = Field(ge=0)
    kv_ring: int = Field(ge=0)
    decoder_state: int = Field(ge=0)
    io: int = Field(ge=0)
    context: int = Field(ge=0)
    """The CUDA context and the loaded kernels."""
    vram: int = Field(gt=0)

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.kv_ring + self.decoder_state + self.io + self.context


class Manifest(Entry):
    """The whole of ``manifest.json``."""

    schema_version: Literal["rtgen.package/1"] = "rtgen.package/1"
    key: Sha256
    rtgen: str
    """Version of rtgen that wrote it."""
    model: ModelEntry
    target: TargetEntry
    recipe: str
    kv_bits: Literal[16, 8, 4] = 16
    """Of a number in the K/V ring; 16: the recipe's precision. A build may ask for others than the recipe's."""
    compiler: CompilerEntry
    profiles: tuple[ProfileEntry, ...] = Field(min_length=1)
    components: Mapping[Component, ComponentEntry]
    share_activations: bool = True
    """Whether the engines take turns, and share the memory of their intermediate results. Engines that are to overlap
    need their own."""
    memory_plan: MemoryPlan
    files: Mapping[FileName, FileEntry]
    """Every file of the package except the manifest itself."""


def resolve(dimension: Dimension, sizes: Mapping[str, int]) -> int:
    """The value of a dimension. Raises KeyError for a name that ``sizes`` lacks."""
    if isinstance(dimension, int):
        return dimension
    terms = (term.split("*") for term in dimension.split("+"))
    return sum(prod(int(factor) if factor.isdigit() else sizes[factor] for factor in term) for term in terms)


def resolve_shape(shape: Sequence[Dimension], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of a tensor."""
    return tuple(resolve(dimension, sizes) for dimension in shape)


def tensor_bytes(tensor: TensorEntry, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor at the given sizes."""
    return prod(resolve_shape(tensor.shape, sizes)) * ITEM_SIZES[tensor.dtype]
