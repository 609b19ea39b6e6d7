"""From a request to a plan: configs loaded and checked against each other, files located, keys computed.

Everything that can be refused is refused here, before any work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

from platformdirs import user_data_dir

from rtgen.build.chosen_prompts import calibration_prompts
from rtgen.build.chosen_ring import chosen_ring
from rtgen.build.request import BuildRequest
from rtgen.build.sizes import requested_profiles
from rtgen.build.toolchain import (
    EXPORTER_PACKAGES,
    MODELOPT,
    builder_sources,
    bundled_stages,
    bundled_toolchain,
    exporter_sources,
    installed_toolchain,
    quantizer_sources,
    recorder_sources,
    torch_sources,
)
from rtgen.build.weights import published_key, published_sources
from rtgen.config.decoder_codes import has_coded_decoder
from rtgen.config.gpu import Compiler, GpuConfig
from rtgen.config.kv_cache import kv_cache_of, pool_rows, ring_frames
from rtgen.config.load import load_gpu, load_model, load_recipe, recipe_for
from rtgen.config.locate import bundled_directory
from rtgen.config.model import ModelConfig, ResolutionProfile, Size
from rtgen.config.recipe import KVCacheFormat, Precision, RecipeConfig
from rtgen.engine import compilers
from rtgen.engine.compilers import require_torch, with_compiler
from rtgen.engine.manifest import Component
from rtgen.engine.trt import TRAITS, installed_version, unsupported_reason
from rtgen.errors import MissingDependencyError, NoGpuError, UsageError
from rtgen.models.checkpoints.layouts import Source
from rtgen.models.registry import COMPONENTS, checkpoint_files
from rtgen.plugins import compiler as kernels
from rtgen.runtime.profiles import pixels
from rtgen.store.keys import JsonValue, fields_digest
from rtgen.store.store import Store

ARCHITECTURE = ("text_encoder", "denoiser", "cache", "autoencoder", "decoder", "decode_frames")
"""Sections of a model config that its graphs depend on."""

STREAM = ("text_encoder", "denoiser", "cache", "autoencoder", "schedule")
"""Sections of a model config that the latents of a stream depend on."""


@dataclass(frozen=True)
class BuildPlan:
    """A checked request. Keys are computed when asked for, and cached."""

    store: Store
    gpu: GpuConfig
    model: ModelConfig
    recipe: RecipeConfig
    profiles: tuple[ResolutionProfile, ...]
    weights: Path
    """Folder of the weights as the build uses them, or as they were published, until the walk has converted them."""
    compiler_version: str
    published: Mapping[str, Source] | None = None
    """Files to convert first."""
    calibration_prompts: tuple[str, ...] = ()
    """What streams are made of for recipes that are calibrated."""

    def for_sizes(self, sizes: Sequence[Size]) -> BuildPlan:
        """The same build for other frame sizes (see :func:`requested_profiles`). Raises SizeError."""
        return replace(self, profiles=requested_profiles(self.model, sizes))

    @cached_property
    def largest(self) -> Mapping[str, int]:
        """The symbolic dimensions at the greatest size of the profile with the most tokens."""
        return self.sizes_at(max((profile.max for profile in self.profiles), key=pixels))

    def sizes_at(self, size: Size) -> dict[str, int]:
        """The symbolic dimensions of a frame size in pixels."""
        return {"rows": size[0] // self.model.size_step[0], "columns": size[1] // self.model.size_step[1]}

    def runs_on(self, component: Component) -> Literal["device", "host"]:
        """Where a component runs; see ``rtgen.engine.manifest.ComponentEntry``."""
        return self.model.text_encoder.runs_on if component == "text_encoder" else "device"

    def precision_of(self, component: Component) -> Precision:
        """What a component computes in: the recipe is about the device, and processors compute in float32."""
        return "float32" if self.runs_on(component) == "host" else self.recipe.precision

    @cached_property
    def fixed_ring(self) -> int | None:
        """Rows of the K/V ring where its length is part of the graph, or None where it follows the frame size.

        TensorRT imports TensorScatter as an in-place cache update only for a ring of fixed length: that of the
        greatest size, of which smaller frames use a prefix.
        """
        return self.ring_at(self.largest) if self.gpu.builds_engines else None

    def ring_at(self, sizes: Mapping[str, int]) -> int:
        """Rows of the K/V ring for latent frames of these symbolic dimensions: tokens, then the pool."""
        ring = self.kv_cache
        return ring_frames(self.model, ring) * sizes["rows"] * sizes["columns"] + pool_rows(self.model, ring)

    @property
    def kv_cache(self) -> KVCacheFormat:
        """What the K/V ring holds."""
        return kv_cache_of(self.model, self.recipe)

    @property
    def has_coded_decoder(self) -> bool:
        """Whether the decoder computes on codes."""
        return has_coded_decoder(self.model, self.recipe)

    @cached_property
    def graph_digest(self) -> str:
        """Of what shapes the graphs: the architecture and the weights."""
        fields: dict[str, JsonValue] = self.model.model_dump(mode="json", include=set(ARCHITECTURE))
        if self.published is not None:
            return fields_digest({**fields, "weights": self.weights_key})
        for component in COMPONENTS:
            files = checkpoint_files(component, self.model, self.weights)
            # The graphs refer to the files by name.
            fields[f"weights.{component}"] = [[file.name, self.store.file_digest(file)] for file in files]
        return fields_digest(fields)

    @cached_property
    def denoiser_digest(self) -> str:
        """Of what a stream's latents depend on: text encoder and denoiser, and how they are run."""
        fields: dict[str, JsonValue] = self.model.model_dump(mode="json", include=set(STREAM))
        if self.published is not None:
            return fields_digest({**fields, "weights": self.weights_key})
        for component in ("text_encoder", "denoiser"):
            files = checkpoint_files(component, self.model, self.weights)
            fields[f"weights.{component}"] = [self.store.file_digest(file) for file in files]
        fields["tokenizer"] = self.store.file_digest(self.weights / self.model.weights.tokenizer)
        return fields_digest(fields)

    @cached_property
    def model_digest(self) -> str:
        """Of everything about the model that a package holds."""
        outside = {"resolution", "title", "weights", "calibration", "evaluation"}
        fields: dict[str, JsonValue] = self.model.model_dump(mode="json", exclude=outside)
        fields["graphs"] = self.graph_digest
        if self.published is None:  # else it is one of the files that the graphs' digest stands for
            fields["tokenizer"] = self.store.file_digest(self.weights / self.model.weights.tokenizer)
        return fields_digest(fields)

    @cached_property
    def weights_key(self) -> str:
        """Of the converted weights."""
        assert self.published is not None
        return published_key(dict(self.published), self.store)

    @cached_property
    def toolchain(self) -> Mapping[str, str]:
        """Versions of what makes the graphs: of the bundled stages where one fits this plan, else the installed.

        Raises MissingDependencyError when no stage fits and something is not installed.
        """
        bundled = bundled_toolchain()
        if bundled is not None and (bundled_stages() / "graphs" / self._graphs_key(bundled)).is_dir():
            return bundled
        quantization = self.recipe.quantization
        return installed_toolchain(with_modelopt=quantization is not None and quantization.needs_modelopt)

    @cached_property
    def export_key(self) -> str:
        return self._export_key(self.toolchain)

    @cached_property
    def calibration_key(self) -> str:
        """Of the recorded streams, for a recipe that is calibrated."""
        return self._calibration_key(self.toolchain)

    @cached_property
    def codes_key(self) -> str:
        """Of the quantized weights and what was decided about them, for a recipe that has any."""
        return self._codes_key(self.toolchain)

    @cached_property
    def ranges_key(self) -> str:
        """Of what the decoder's convolutions were seen to take and give, where it computes on codes."""
        return self._ranges_key(self.toolchain)

    @cached_property
    def quantize_key(self) -> str:
        """Of the graphs with quantized weights, for a recipe that has any."""
        return self._quantize_key(self.toolchain)

    @cached_property
    def graphs_key(self) -> str:
        return self._graphs_key(self.toolchain)

    @cached_property
    def contents_key(self) -> str:
        """Of what the package is made of: graphs, or for torch weights and what describes the modules."""
        if self.gpu.compiler != "torch":
            return self.graphs_key
        return fields_digest(
            {
                "weights": self.graph_digest,
                "codes": None if self.recipe.quantization is None else self.codes_key,
                "kv_cache": self.kv_cache.model_dump(mode="json"),
                "sources": torch_sources(),
            }
        )

    def _export_key(self, toolchain: Mapping[str, str]) -> str:
        return fields_digest(
            {
                "graphs": self.graph_digest,
                "precision": self.recipe.precision,
                "kv_cache": self.kv_cache.model_dump(mode="json"),
                "ranges": self._ranges_key(toolchain) if self.has_coded_decoder else None,
                "exporter": {name: toolchain[name] for name in EXPORTER_PACKAGES},
                "sources": exporter_sources(),
            }
        )

    def _graphs_key(self, toolchain: Mapping[str, str]) -> str:
        before = self._export_key(toolchain) if self.recipe.quantization is None else self._quantize_key(toolchain)
        return fields_digest({"export": before, "fixed_ring": self.fixed_ring})

    def _calibration_key(self, toolchain: Mapping[str, str]) -> str:
        # Not whether a GPU computed it: streams and statistics serve as well either way, and a package that was built
        # elsewhere has to be found.
        return fields_digest(
            {
                "model": self.model.model_dump(mode="json", include=set(STREAM)),
                "graphs": self.denoiser_digest,
                "prompts": self.calibration_prompts,
                "size": self.model.calibration.size or self.model.resolution.default,
                "torch": toolchain["torch"],
                "sources": recorder_sources(),
            }
        )

    def _codes_key(self, toolchain: Mapping[str, str]) -> str:
        quantization = self.recipe.quantization
        assert quantization is not None
        return fields_digest(
            {
                "graphs": self.denoiser_digest,
                "recipe": self.recipe.name,
                "quantization": quantization.model_dump(mode="json"),
                "kv_cache": self.kv_cache.model_dump(mode="json") if quantization.is_calibrated else None,
                "calibration": self._calibration_key(toolchain) if quantization.is_calibrated else None,
                "torch": toolchain["torch"],
                "modelopt": toolchain.get(MODELOPT) if quantization.needs_modelopt else None,
                "sources": quantizer_sources(),
            }
        )

    def _ranges_key(self, toolchain: Mapping[str, str]) -> str:
        return fields_digest(
            {
                "graphs": self.graph_digest,
                "calibration": self._calibration_key(toolchain),
                "torch": toolchain["torch"],
                "sources": quantizer_sources(),
            }
        )

    def _quantize_key(self, toolchain: Mapping[str, str]) -> str:
        return fields_digest({"export": self._export_key(toolchain), "codes": self._codes_key(toolchain)})

    @cached_property
    def package_key(self) -> str:
        return fields_digest(
            {
                "graphs": self.contents_key,
                "model": self.model_digest,
                "recipe": self.recipe.model_dump(mode="json", exclude={"title", "targets"}),
                "compiler": {"name": self.gpu.compiler, "version": self.compiler_version},
                # The sources of kernels are among the exporter's.
                "kernels": kernels.compiler_version() if self.gpu.builds_engines else None,
                "sources": builder_sources(),
                # Engines of TensorRT for RTX and ONNX files serve every operating system; TensorRT's do not.
                "platform": sys.platform if self.gpu.compiler == "tensorrt" else "any",
                "compute_capability": self.gpu.compute_capability,
                "vram_gib": self.gpu.vram_gib,
                "gpu": self.gpu.name,
                "default_size": self.model.resolution.default,
                "profiles": [profile.model_dump(mode="json") for profile in self.profiles],
            }
        )


def plan_build(request: BuildRequest) -> BuildPlan:
    """Check a request.

    Raises UnknownNameError, ConfigError, UsageError, PromptError, SizeError, MissingDependencyError or CheckpointError.
    """
    gpu = with_compiler(load_gpu(request.gpu), cast("Compiler | None", request.backend))
    model = with_decoder(load_model(request.model), request.decoder)
    recipe = load_recipe(request.recipe or gpu.default_recipe)
    recipe_for(gpu, recipe)
    recipe = chosen_ring(gpu, model, recipe, request.kv_bits)
    profiles = requested_profiles(model, request.sizes)
    weights = request.weights or weights_directory(model)
    published = published_sources(model, weights) if model.weights.published else None
    for component in COMPONENTS if published is None else ():
        checkpoint_files(component, model, weights)
    store = Store(request.store, bundled=[bundled_stages()])
    found = compiler_version(gpu)
    check_presence(gpu)
    prompts = calibration_prompts(request.calibration_prompts, model, recipe)
    return BuildPlan(store, gpu, model, recipe, profiles, weights, found, published, prompts)


def check_presence(gpu: GpuConfig) -> None:
    """Raise NoGpuError for a compiler that can only compile for a GPU of the machine, where that GPU is absent."""
    from rtgen.runtime.select import detect_gpus

    if gpu.compiler != "tensorrt":
        return
    if all(found.compute_capability != gpu.compute_capability for found in detect_gpus()):
        raise NoGpuError(
            f"{TRAITS['tensorrt'].title} compiles on the GPU itself, and this machine has none of compute capability "
            f"{gpu.compute_capability}",
            hint=f"--backend torch builds {gpu.name} packages anywhere, as RTX targets do",
        )


def with_decoder(model: ModelConfig, decoder: str | None) -> ModelConfig:
    """The model with another decoder than its config names first. Raises UsageError unless it offers that one."""
    if decoder is None or decoder == model.decoder:
        return model
    if decoder not in model.decoders:
        raise UsageError(
            f"{model.name} has no weights of decoder '{decoder}'",
            hint=f"--decoder {' or '.join(model.decoders)}",
        )
    return model.model_copy(update={"decoder": decoder})


def weights_directory(model: ModelConfig) -> Path:
    """Where the weights are unless the user says otherwise."""
    if model.weights.directory == "bundled":
        return bundled_directory(model.name)
    if model.weights.directory == "":
        return Path(user_data_dir("rtgen", appauthor=False)) / "models" / model.name
    return Path(model.weights.directory).expanduser()


def compiler_version(gpu: GpuConfig) -> str:
    """Version of the compiler that serves a GPU. Raises MissingDependencyError when it is absent or cannot."""
    compiler: Compiler = gpu.compiler
    if compiler == "onnxruntime":
        return onnxruntime_version()
    if compiler == "torch":
        return require_torch(f"{gpu.name} is to run with torch, which")
    assert gpu.compute_capability is not None  # load_gpu checked it
    found = installed_version(compiler)
    if found is None:
        other = unsupported_reason("tensorrt_rtx", gpu.compute_capability) if compiler == "tensorrt" else None
        reason = f": {other}" if other else ""
        title, install = TRAITS[compiler].title, TRAITS[compiler].install
        if gpu.fallback == "torch" and compilers.installed_version("torch") is None:
            raise MissingDependencyError(
                f"{gpu.name} needs {title} or torch, and neither is installed{reason}",
                hint=f'{compilers.TORCH_INSTALL} for torch, or "rtgen[tensorrt]"',
            )
        raise MissingDependencyError(f"{gpu.name} needs {title}, which is not installed{reason}", hint=install)
    return found


def onnxruntime_version() -> str:
    """Version of whichever ONNX Runtime distribution is installed. Raises MissingDependencyError."""
    from importlib.metadata import PackageNotFoundError

    for distribution in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise MissingDependencyError("ONNX Runtime is not installed", hint="pip install --upgrade rtgen")
