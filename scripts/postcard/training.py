"""What both trainings share: time-boxed learning rates, averaged weights, checkpoints, the log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rtgen.config.load import load_model
from rtgen.config.model import ModelConfig
from scripts.postcard.muon import StackedMuon

KEPT = Path(__file__).with_name("weights")
"""What training and evaluation go on from and the package does not ship: the encoder, the classifier."""


def postcard_config() -> ModelConfig:
    return load_model("postcard")


class Clock:
    """A wall-clock budget. ``resumed`` is the fraction of the whole schedule that an earlier run has done."""

    def __init__(self, minutes: float, resumed: float = 0.0) -> None:
        self.start, self.seconds, self.resumed = time.monotonic(), minutes * 60, resumed

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def fraction(self) -> float:
        """Of the whole schedule, 0 to 1."""
        return min(1.0, self.resumed + (1 - self.resumed) * self.elapsed / self.seconds)

    @property
    def over(self) -> bool:
        return self.elapsed >= self.seconds


def learning_rate_factor(step: int, fraction: float, *, warmup_steps: int, decay_from: float = 0.6) -> float:
    """Linear warm-up by steps, constant, then a cosine to 2 % over the rest of the time."""
    warm = min(1.0, (step + 1) / warmup_steps)
    if fraction < decay_from:
        return warm
    done = (fraction - decay_from) / (1 - decay_from)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class AveragedWeights:
    """An exponential moving average of parameters, in float32."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.live = {
            f"{part}.{name}": value for part, module in modules.items() for name, value in module.named_parameters()
        }
        self.average = {name: value.detach().clone().float() for name, value in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 20))
        torch._foreach_lerp_(list(self.average.values()), [p.detach().float() for p in self.live.values()], 1 - decay)

    def part(self, name: str) -> dict[str, Tensor]:
        """The averaged weights of one module."""
        return {
            key.removeprefix(f"{name}."): value for key, value in self.average.items() if key.startswith(f"{name}.")
        }


def save_weights(folder: Path, name: str, tensors: Mapping[str, Tensor], *, most_bytes: int = 15_000_000) -> None:
    """Write float16 safetensors in files of at most ``most_bytes``: name.0.safetensors, name.1.safetensors …"""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if size + half.nbytes > most_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = half
        size += half.nbytes
    for index, shard in enumerate(shards):
        temporary = folder / f"{name}.{index}.partial"
        save_file(shard, temporary)
        temporary.replace(folder / f"{name}.{index}.safetensors")


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote, as float32."""
    files = sorted(folder.glob(f"{name}.*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no {name}.*.safetensors in {folder}")
    return {key: value.float() for file in files for key, value in load_file(file).items()}


class Log:
    """One JSON object a line, to a file and the terminal."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, **values: float | int | str) -> None:
        line = json.dumps(
            {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        )
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def optimizers(modules: Iterable[nn.Module], *, rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, AdamW for everything else, at one rate."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            is_block_matrix = parameter.ndim == 2 and name.startswith("blocks.") and "embedding" not in name
            (matrices if is_block_matrix else others).append(parameter)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=others[0].is_cuda)
    ]
    if matrices:
        found.append(StackedMuon(matrices, rate=rate, weight_decay=weight_decay))
    return found


class KernelMatrices:
    """Kernels of convolutions as the matrices [out, in * places] that Muon works on.

    Each matrix is a view: stepping it steps the kernel, which must lie channels last. Call :meth:`load_gradients`
    before every step.
    """

    def __init__(self, kernels: Iterable[nn.Parameter]) -> None:
        self.kernels = list(kernels)
        self.matrices = [nn.Parameter(self._matrix(kernel.data)) for kernel in self.kernels]
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            if matrix.data_ptr() != kernel.data_ptr():
                raise ValueError("a kernel that does not lie channels last has no matrix that shares its memory")

    @staticmethod
    def _matrix(kernel: Tensor) -> Tensor:
        return kernel.movedim(1, -1).flatten(1)

    def load_gradients(self) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else self._matrix(kernel.grad)


def set_rate(found: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in found:
        for group in optimizer.param_groups:
            group["lr"] = rate
