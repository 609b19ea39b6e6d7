"""The tiny decoder's checkpoint (TAEHV): its names are ours, and its encoder is left out."""

from __future__ import annotations

from collections.abc import Mapping

from rtgen.models.checkpoints.lazy import FileTensor, LazyTensor
from rtgen.models.checkpoints.names import rename, renamed, rules
from rtgen.models.checkpoints.source import Checkpoint

PUBLISHED = rules({r"encoder\..+": None})


def tiny_decoder_tensors(checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """The decoder's tensors (:class:`rtgen.models.taehv.TinyDecoder`).

    ``wanted``: shapes by name. A file may hold a growth in time for more frames than the decoder makes; then the
    channels of the last frames are the ones to keep, as in TAEHV's own loader.
    """
    found = rename(checkpoint.tensors, lambda name: renamed(name, PUBLISHED))
    return {name: _last_frames(name, tensor, wanted.get(name)) for name, tensor in found.items()}


def _last_frames(name: str, tensor: LazyTensor, shape: tuple[int, ...] | None) -> LazyTensor:
    grows = shape is not None and name.endswith(".conv.weight") and tensor.shape[1:] == shape[1:]
    if not grows or shape is None or not isinstance(tensor, FileTensor) or tensor.shape[0] <= shape[0]:
        return tensor
    return tensor.rows(tensor.shape[0] - shape[0])
