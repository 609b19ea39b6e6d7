"""The manifest of an engine package: everything the runtime wing needs to know, and nothing to execute.

Shapes are symbolic. A dimension is an integer or a product of integers and dimension names such as
``"12*rows*columns"``; the base names are ``rows`` and ``columns`` (the token grid of one latent frame), ``tokens``
(the padded prompt) and whatever else a component declares. :func:`resolve` turns it into a number.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MANIFEST_NAME = "manifest.json"

Dimension = int | Annotated[str, StringConstraints(pattern=r"^(\d+|[a-z_]+)(\*(\d+|[a-z_]+))*$", max_length=80)]
Component = Literal["text_encoder", "denoiser", "decoder"]
DataType = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
FileName = Annotated[str, StringConstraints(pattern=r"^(kernels/)?[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
"""A plain name, optionally under ``kernels/``: no path of a manifest can leave its package."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = tuple[int, int]

ITEM_SIZES: Mapping[str, int] = {
    "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


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
    """One engine or ONNX file and its tensor table."""

    file: FileName
    weights: tuple[FileName, ...] = ()
    """Files with external weights of an ONNX file; engines carry theirs."""
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    states: tuple[StateEntry, ...] = ()
    runs_on: Literal["device", "host"] = "device"
    """``host``: an ONNX file that ONNX Runtime runs on the processor, whatever the package's compiler, and that is
    loaded only while it is needed."""


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
    name: Literal["tensorrt_rtx", "tensorrt", "onnxruntime"]
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
    return prod(int(factor) if factor.isdigit() else sizes[factor] for factor in dimension.split("*"))


def resolve_shape(shape: Sequence[Dimension], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of a tensor."""
    return tuple(resolve(dimension, sizes) for dimension in shape)


def tensor_bytes(tensor: TensorEntry, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor at the given sizes."""
    return prod(resolve_shape(tensor.shape, sizes)) * ITEM_SIZES[tensor.dtype]
