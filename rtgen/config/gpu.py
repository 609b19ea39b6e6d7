"""Schema of ``configs/gpus/*.toml``: one file per target."""

from typing import Literal

from pydantic import Field

from rtgen.config.base import Section

Compiler = Literal["tensorrt_rtx", "tensorrt", "onnxruntime", "torch"]
ENGINE_COMPILERS: tuple[Compiler, ...] = ("tensorrt_rtx", "tensorrt")
"""Those that compile ahead of time, for one GPU. The others run what the package holds."""


class Throughput(Section):
    """Dense peak rates in tera-operations per second (tensor cores where there are any); None: not in hardware."""

    fp32: float = Field(gt=0)
    fp16: float | None = Field(default=None, gt=0)
    fp16_sums: float | None = Field(default=None, gt=0)
    """FP16 products whose sums are FP16, too, where that is faster than sums in FP32: GPUs for games."""
    bf16: float | None = Field(default=None, gt=0)
    fp8: float | None = Field(default=None, gt=0)
    fp4: float | None = Field(default=None, gt=0)
    int8: float | None = Field(default=None, gt=0)
    int4: float | None = Field(default=None, gt=0)


class GpuConfig(Section):
    """A target that packages are built for."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    architecture: str
    compiler: Compiler
    fallback: Compiler | None = None
    """What serves it where ``compiler`` is not installed."""
    compute_capability: str | None = Field(default=None, pattern=r"^\d+\.\d$")
    """As ``major.minor``; None for targets that are not CUDA GPUs."""
    multiprocessors: int | None = Field(default=None, gt=0)
    """SMs; None for targets that are not CUDA GPUs."""
    vram_gib: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    board_power_w: float = Field(gt=0)
    throughput_tops: Throughput
    default_recipe: str
    device_names: tuple[str, ...] = ()
    """Names as the driver reports them (NVML), used by ``--gpu auto``."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Where the numbers come from."""

    @property
    def builds_engines(self) -> bool:
        """Whether packages hold engines, and not graphs or weights."""
        return self.compiler in ENGINE_COMPILERS

    @property
    def sm(self) -> str | None:
        """The compute capability as TensorRT and NVRTC spell it, such as ``sm_89``."""
        return None if self.compute_capability is None else "sm_" + self.compute_capability.replace(".", "")
