"""LPIPS: how different two pictures look to a network that was tuned on people's answers (Zhang et al., 2018).

The network's weights are not part of rtgen, and are never fetched: where they are not on this machine, LPIPS is not
measured, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rtgen.fidelity.metrics import Frames

BACKBONE: Final = "alexnet-owt-7be5be79.pth"
"""What torchvision calls AlexNet's weights in the folder that torch keeps downloads in."""
FRAMES_BETWEEN: Final = 4
"""Every fourth frame is looked at: neighbours say nearly the same."""
_PICTURES_AT_ONCE: Final = 16

Network = Callable[["Tensor", "Tensor"], "Tensor"]
"""Distances of two batches of pictures, float32 [N, 3, H, W] in -1..1: as many numbers as pictures, in any shape."""


class NotMeasuredError(Exception):
    """The message says why, for the report."""


def load_network() -> Network:
    """LPIPS with AlexNet, by the package ``lpips``, from weights on this machine. Raises NotMeasuredError."""
    try:
        import lpips  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise NotMeasuredError("the package lpips is not installed") from error
    except Exception as error:  # torchvision beneath it does not fit torch
        raise NotMeasuredError(f"the package lpips does not load: {str(error).splitlines()[0]}") from error
    backbone = backbone_file()
    if not backbone.is_file():
        raise NotMeasuredError(f"weights of the network not present: no {BACKBONE} in {backbone.parent}")
    try:
        network: Network = lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except Exception as error:  # torchvision beneath it, or a damaged file, raises whatever it likes
        raise NotMeasuredError(f"the package lpips does not load: {str(error).splitlines()[0]}") from error
    return network


def backbone_file() -> Path:
    """Where torch looks for AlexNet's weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


def distances(network: Network, candidate: Frames, reference: Frames) -> NDArray[np.float64]:
    """The distance of every fourth pair of frames, uint8 [F, H, W, 3]: [ceil(F / 4)], 0 for equal pictures."""
    import torch

    found = []
    pairs = candidate[::FRAMES_BETWEEN], reference[::FRAMES_BETWEEN]
    for start in range(0, len(pairs[0]), _PICTURES_AT_ONCE):
        one, other = (_pictures(frames[start : start + _PICTURES_AT_ONCE]) for frames in pairs)
        with torch.no_grad():
            found.append(network(one, other).reshape(-1).double().numpy())
    return np.concatenate(found)


def _pictures(frames: Frames) -> Tensor:
    import torch

    return torch.from_numpy(np.array(frames.transpose(0, 3, 1, 2))).float() / 127.5 - 1
