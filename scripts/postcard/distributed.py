"""Several GPUs that train one model: each sees data of its own, and gradients are averaged.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m scripts.postcard.train_denoiser …

Without the launcher a training runs alone, through the same code.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Group:
    """The processes of a training and this one's place among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and log lines."""
        return self.rank == 0

    def same(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the first one's parameters."""
        if self.size > 1:
            for module in modules:
                for parameter in module.parameters():
                    distributed.broadcast(parameter.data, src=0)

    def agree(self, value: float) -> float:
        """The first process's value: clocks differ, and all must stop and change rates at the same step."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes, in one exchange."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        parts: list[Tensor] = list(flat.split([gradient.numel() for gradient in gradients]))
        torch._foreach_copy_(
            gradients, [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
        )


def join() -> Group:
    """The group that ``torch.distributed.run`` started this process in, or a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if size == 1:
        return Group(0, 1, torch.device("cuda" if cuda else "cpu"))
    place = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", place) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    return Group(int(os.environ["RANK"]), size, device)
