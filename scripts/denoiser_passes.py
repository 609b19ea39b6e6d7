"""Time single passes of a full-size denoiser in the torch backend beside plain eager torch, on a CUDA GPU.

    python -m scripts.denoiser_passes --report passes.json --profile

Weights are random and no package is built, so every combination of linear layers and K/V ring takes seconds. The window
is full in every pass. ``rtgen bench pipeline`` times what a user gets; this says where the time of a pass goes.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rtgen.bench.eager import EagerDevice
from rtgen.bench.random_model import random_state
from rtgen.bench.report import write_report
from rtgen.bench.result import Measurement
from rtgen.config.load import load_model
from rtgen.config.model import ModelConfig
from rtgen.config.recipe import KVCacheFormat
from rtgen.engine.manifest import ComponentEntry, resolve_shape
from rtgen.export.denoiser import DenoiserPass
from rtgen.models.dit import Block, CausalVideoDiT
from rtgen.models.registry import create
from rtgen.quantize.formats import FP8_HIGHEST
from rtgen.quantize.recorder import Ring
from rtgen.runtime.rope import axis_table
from rtgen.torch_backend.backend import find_gpu
from rtgen.torch_backend.description import describe
from rtgen.torch_backend.fp8_linear import Fp8Linear
from rtgen.torch_backend.lanes import CudaLane
from rtgen.torch_backend.programs import program_of
from rtgen.torch_backend.step_kernels import KernelSteps
from rtgen.torch_backend.tables import table_of

SIGMA: Final = 0.9375
HIGHEST_INPUT: Final = 6.0
"""What FP8 layers are scaled for. Nothing saturates much, and times do not depend on it."""
CASES: Final[Mapping[str, tuple[bool, KVCacheFormat]]] = {
    "fp16, K/V in 16 bits": (False, KVCacheFormat()),
    "fp8, K/V in 16 bits": (True, KVCacheFormat()),
    "fp8, K/V in 8 bits": (True, KVCacheFormat(bits=8)),
    "fp8, K/V in 4 bits": (True, KVCacheFormat(bits=4)),
    "fp16, K/V in 4 bits, keep 0.5": (False, KVCacheFormat(bits=4, keep=0.5)),
    "fp8, K/V in 4 bits, keep 0.5": (True, KVCacheFormat(bits=4, keep=0.5)),
    "fp8, K/V in 4 bits, keep 0.33": (True, KVCacheFormat(bits=4, keep=0.33)),
}
"""Whether the blocks' linear layers multiply in FP8, and what the ring holds."""

Run = Callable[[], None]


class Setting:
    """A model, a frame size, its weights and what a pass is given."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        height, width = config.resolution.default
        self.sizes = {"rows": height // config.size_step[0], "columns": width // config.size_step[1]}
        self.frame = self.sizes["rows"] * self.sizes["columns"]
        with torch.device("meta"):
            outline = create("denoiser", config)
        self._state = random_state(outline, torch.float16)

    def model(self, dtype: torch.dtype) -> CausalVideoDiT:
        with torch.device("meta"):
            module = create("denoiser", self.config)
        state = {name: tensor.to("cuda", dtype) for name, tensor in self._state.items()}
        module.load_state_dict(state, strict=False, assign=True)
        return cast("CausalVideoDiT", module.eval().requires_grad_(False))

    def inputs(self, chunk: int) -> dict[str, Any]:
        """What the pass of a chunk is given, before the ring turns over."""
        config, frames = self.config, self.config.cache.chunk
        time_, height, width = config.denoiser.rope_split
        generator = np.random.default_rng(chunk)
        sides = (config.denoiser.patch[1] * self.sizes["rows"], config.denoiser.patch[2] * self.sizes["columns"])
        latents = (1, config.autoencoder.latent_channels, frames, *sides)
        text = (1, config.text_encoder.max_tokens, config.text_encoder.dim)
        return {
            "clean": generator.standard_normal(latents, np.float32),
            "noise": generator.standard_normal(latents, np.float32),
            "sigma": np.array([SIGMA], np.float32),
            "context": generator.standard_normal(text, np.float32),
            "rope_time": axis_table(np.arange(chunk * frames, (chunk + 1) * frames), time_),
            "rope_height": axis_table(np.arange(self.sizes["rows"]), height),
            "rope_width": axis_table(np.arange(self.sizes["columns"]), width),
            "write_index": np.array([chunk * frames * self.frame]),
            "valid_length": np.array([(chunk + 1) * frames * self.frame]),
            "frame_tokens": np.array([self.frame]),
        }

    @property
    def chunks(self) -> int:
        """That fill the window."""
        return self.config.cache.window // self.config.cache.chunk


def eager_pass(setting: Setting) -> Run:
    """The model's modules in BF16, called as they are, as in ``rtgen bench pipeline``."""
    config, model = setting.config, DenoiserPass(setting.model(torch.bfloat16))
    shape = (1, config.denoiser.heads, config.cache.window * setting.frame, config.denoiser.head_dim)
    ring = Ring(config.denoiser.layers, shape, EagerDevice("cuda"))
    for tensor in (*ring._keys, *ring._values):
        tensor.normal_()
    given = {name: torch.from_numpy(value) for name, value in setting.inputs(setting.chunks - 1).items()}
    ring.write_index, ring.valid_length = given["write_index"], given["valid_length"]
    placed = {name: value.cuda() for name, value in given.items()}
    tables = placed["rope_time"], placed["rope_height"], placed["rope_width"]

    @torch.inference_mode()
    def run() -> None:
        model.estimates(placed["clean"], placed["noise"], placed["sigma"], placed["context"], tables, ring)

    return run


def backend_pass(setting: Setting, fp8: bool, ring: KVCacheFormat) -> Run:
    """The torch backend's program with a CUDA graph of it."""
    config, model = setting.config, setting.model(torch.float16)
    if fp8:
        to_fp8(model)
    description = describe(config, "float16", ring, ())
    table = table_of("denoiser", description)
    entry = ComponentEntry(file="denoiser", inputs=table.inputs, outputs=table.outputs, states=table.states)
    capability = torch.cuda.get_device_capability()
    gpu = find_gpu("{}.{}".format(*capability))
    lane, steps = CudaLane(gpu, captures=True), KernelSteps(config.denoiser, capability)
    program = program_of(model, entry, description, gpu.device, steps)
    in_place = {state.output for state in entry.states}
    shapes = {
        tensor.name: (resolve_shape(tensor.shape, setting.sizes), np.dtype(tensor.dtype))
        for tensor in (*entry.inputs, *entry.outputs)
        if tensor.name not in in_place
    }
    tensors: dict[str, Tensor] = {name: lane.zeros(*shape) for name, shape in shapes.items()}
    numbers: dict[str, int] = {}

    def work() -> None:
        for name, value in program(tensors, numbers).items():
            tensors[name].copy_(value)

    def run() -> None:
        lane.execute(program.kind(numbers), work)
        lane.stream.synchronize()

    for chunk in range(setting.chunks):
        for name, value in setting.inputs(chunk).items():
            if name in program.host_numbers:
                numbers[name] = int(value[0])
            if name in tensors:
                lane.upload(tensors[name], value)
        if chunk == 0:
            lane.execute(-1, lambda: program.prepare(tensors))
        run()
    if not np.isfinite(lane.download(tensors["denoised"])).all():
        raise ValueError("the pass gives numbers that are not finite")
    return run


def to_fp8(model: CausalVideoDiT) -> None:
    """Every linear layer of the blocks, rounded to nearest."""
    for block in cast("list[Block]", list(model.blocks)):
        for name, module in list(block.named_modules()):
            if not isinstance(module, nn.Linear):
                continue
            scale = module.weight.abs().max().float() / FP8_HIGHEST
            codes = (module.weight.float() / scale).to(torch.float8_e4m3fn).view(torch.uint8)
            step = torch.tensor(HIGHEST_INPUT / FP8_HIGHEST, device=codes.device)
            layer = Fp8Linear({"codes": codes, "scales": scale, "input_scale": step}, module.bias, torch.float16)
            parent, _, attribute = name.rpartition(".")
            setattr(block.get_submodule(parent), attribute, layer)


def milliseconds(run: Run, repeats: int) -> float:
    """The median of passes, each waited for."""
    times = []
    for repeat in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if repeat >= 3:
            times.append(time.perf_counter() - start)
    return 1000 * median(times)


def print_kernels(run: Run, title: str, rows: int = 16) -> None:
    """What the GPU does in one pass."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
    kernels = sorted(found.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    total = sum(kernel.self_device_time_total for kernel in kernels) / 1000
    print(f"{title}: kernels take {total:.2f} ms", flush=True)
    for kernel in kernels[:rows]:
        spent = kernel.self_device_time_total
        print(f"  {spent / 1000:7.3f} ms {kernel.count:4d} x {spent / kernel.count:7.1f} us  {kernel.key[:90]}")


def measured(title: str, make: Callable[[], Run], baseline: Measurement | None, options: Any) -> Measurement:
    """The time of one kind of pass."""
    gc.collect()
    torch.cuda.empty_cache()
    run = make()
    value = milliseconds(run, options.repeats)
    ratio = None if baseline is None else baseline.value / value
    beside = None if baseline is None else baseline.value
    print(f"{title:32} {value:8.2f} ms {'' if ratio is None else f'{ratio:.2f}x'}", flush=True)
    if options.profile:
        print_kernels(run, title)
    return Measurement(f"{title}: pass", value, "ms", beside, ratio, "eager torch, BF16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan2.1-1.3b-self-forcing")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="print the kernels of each pass")
    parser.add_argument("--report", type=Path, metavar="FILE", help="JSON to write, and an SVG beside it")
    options = parser.parse_args()
    setting = Setting(load_model(options.model))
    baseline = measured("eager, BF16", lambda: eager_pass(setting), None, options)
    results = [baseline]
    for title, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention", SDPBackend.FLASH_ATTENTION)):
        with sdpa_kernel(backend):
            results.append(measured(f"eager, BF16, {title}", lambda: eager_pass(setting), baseline, options))
    for title, (fp8, ring) in CASES.items():
        results.append(measured(title, partial(backend_pass, setting, fp8, ring), baseline, options))
    if options.report is not None:
        write_report(options.report, f"python -m scripts.denoiser_passes --model {options.model}", results)


if __name__ == "__main__":
    main()
