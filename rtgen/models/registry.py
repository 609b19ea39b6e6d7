"""The components of a model, built from its config and filled from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rtgen.engine.manifest import Component
from rtgen.errors import CheckpointError
from rtgen.models.safetensors_index import StoredTensor, read_index

if TYPE_CHECKING:
    from torch import nn

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision

COMPONENTS: tuple[Component, ...] = get_args(Component)


def create(component: Component, config: ModelConfig) -> nn.Module:
    """A component with the initial weights of training."""
    from rtgen.models.autoencoder import StreamingDecoder
    from rtgen.models.dit import CausalVideoDiT
    from rtgen.models.taehv import TinyDecoder
    from rtgen.models.text_encoder import TextEncoder

    match component:
        case "text_encoder":
            return TextEncoder(config.text_encoder)
        case "denoiser":
            channels, text_dim = config.autoencoder.latent_channels, config.text_encoder.dim
            return CausalVideoDiT(config.denoiser, channels=channels, text_dim=text_dim)
        case "decoder":
            if config.decoder == "taehv":
                return TinyDecoder(config.autoencoder.latent_channels)
            return StreamingDecoder(config.autoencoder)


def checkpoint_files(component: Component, config: ModelConfig, folder: Path) -> tuple[Path, ...]:
    """The component's files in ``folder``. Raises CheckpointError listing those, or the tokenizer, that are missing."""
    names: tuple[str, ...] = getattr(config.weights, component)
    if config.weights.published:  # converted: as many files as it took
        names = tuple(sorted(path.name for path in folder.glob(f"{component}.*.safetensors"))) or (component,)
    missing = [name for name in (*names, config.weights.tokenizer) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"weights of {config.name} are missing in {folder}: {', '.join(missing)}",
            hint=f"rtgen model show {config.name} says which files belong there; --weights names another folder",
        )
    return tuple(folder / name for name in names)


def checkpoint_index(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Where every tensor of a component lies. Raises CheckpointError for unreadable files or a tensor given twice."""
    index: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_index(file).items():
            if name in index:
                raise CheckpointError(f"{name!r} is in both {index[name].file.name} and {file.name}")
            index[name] = tensor
    return index


def check_names(component: str, wanted: Mapping[str, tuple[int, ...]], index: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError unless the checkpoint holds exactly the wanted tensors in the wanted shapes."""
    problems = [f"missing {name}" for name in sorted(wanted.keys() - index.keys())]
    problems += [f"surplus {name!r}" for name in sorted(index.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(index[name].shape)} instead of {list(shape)}"
        for name, shape in sorted(wanted.items())
        if name in index and index[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"the weights do not fit the {component}: {'; '.join(problems[:4])}{more}")


def prepare(component: Component, config: ModelConfig, folder: Path) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """A component without memory for its weights, and where each is stored.

    Raises CheckpointError unless the files hold exactly the component's tensors.
    """
    import torch

    index = checkpoint_index(checkpoint_files(component, config, folder))
    with torch.device("meta"):
        module = create(component, config)
    check_names(component, {name: tuple(value.shape) for name, value in module.named_parameters()}, index)
    return module, index


def outline(
    component: Component, config: ModelConfig, folder: Path, precision: Precision
) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """What :func:`load` returns, for looking at the module's structure: a weight is one number, seen many times."""
    import torch

    module, index = prepare(component, config, folder)
    dtype = torch.float16 if precision == "float16" else torch.float32
    # A number of its own each: the optimizer of graphs makes one of constants that are equal.
    weights = {
        name: torch.tensor(1.0 + number, dtype=dtype).expand(value.shape)
        for number, (name, value) in enumerate(module.named_parameters())
    }
    module.load_state_dict(weights, strict=False, assign=True)
    return module.eval().requires_grad_(False), index


def load(
    component: Component, config: ModelConfig, folder: Path, precision: Precision
) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """A component with its weights in ``precision``, and where each weight is stored.

    Weights that are stored in ``precision`` are mapped from their files, not copied. Raises CheckpointError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    module, index = prepare(component, config, folder)
    for file in checkpoint_files(component, config, folder):
        try:
            module.load_state_dict(load_file(file), strict=False, assign=True)
        except SafetensorError as error:  # stricter than the index: it refuses gaps, for one
            raise CheckpointError(f"{file.name} is not a sound safetensors file: {error}") from error
    module = module.half() if precision == "float16" else module.float()
    return module.eval().requires_grad_(False), index
