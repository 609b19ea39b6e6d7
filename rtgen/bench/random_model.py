"""A model at full size without its weights: random ones, for figures that do not depend on what a model draws."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from rtgen.config.locate import CONFIGS_VARIABLE, bundled_directory
from rtgen.errors import CheckpointError
from rtgen.models.registry import COMPONENTS, create

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rtgen.build.request import BuildRequest
    from rtgen.config.model import ModelConfig

BLOCK: Final = (1 << 20) + 7
"""Random numbers that are drawn. Tensors repeat them from a place of their own: compilers store equal ones once."""
TOKENIZED: Final = "postcard"
"""The bundled model, whose tokenizer is taken."""
VOCABULARY: Final = 512
CALIBRATION: Final = "bench"
"""Name of the list of prompts that stands in for the model's own."""


def has_weights(request: BuildRequest) -> bool:
    """Whether the weights of a request's model are there."""
    from rtgen.build.plan import weights_directory, with_decoder
    from rtgen.build.weights import published_sources
    from rtgen.config.load import load_model
    from rtgen.models.registry import checkpoint_files

    config = with_decoder(load_model(request.model), request.decoder)
    folder = request.weights or weights_directory(config)
    try:
        if config.weights.published is not None:
            published_sources(config, folder)
        else:
            for component in COMPONENTS:
                checkpoint_files(component, config, folder)
    except CheckpointError:
        return False
    return True


@contextmanager
def random_model(config: ModelConfig) -> Iterator[tuple[Path, Path]]:
    """A folder of random weights and one for packages of them, while the block runs.

    Meanwhile the config of this name is one that takes these weights, here and in processes that are started. Its text
    encoder has a single layer and few words: it runs once a prompt, and is larger than all the rest. Recipes are
    calibrated on the first chunk of a single stream: no scale is better than another for what such a model draws.
    """
    with TemporaryDirectory() as place:
        folder = Path(place)
        small = config.text_encoder.model_copy(update={"layers": 1, "vocabulary": VOCABULARY})
        files = {str(component): (f"{component}.0.safetensors",) for component in COMPONENTS}
        own = config.weights.model_copy(update={"directory": str(folder / "weights"), "published": None, **files})
        quick = config.calibration.model_copy(update={"prompts": CALIBRATION, "chunks": (0,)})
        update = {"text_encoder": small, "weights": own, "evaluation": None, "calibration": quick}
        changed = config.model_copy(update=update)
        models, calibration = (folder / "configs" / name for name in ("models", "calibration"))
        models.mkdir(parents=True)
        calibration.mkdir()
        (calibration / f"{CALIBRATION}.txt").write_text(config.example_prompts[0] + "\n", encoding="utf-8")
        values = changed.model_dump(mode="json", exclude_none=True)
        (models / f"{config.name}.toml").write_text(toml(values), encoding="utf-8")
        write_weights(changed, folder / "weights")
        before = os.environ.get(CONFIGS_VARIABLE)
        os.environ[CONFIGS_VARIABLE] = os.pathsep.join([str(folder / "configs"), *([before] if before else [])])
        try:
            yield folder / "weights", folder / "store"
        finally:
            if before is None:
                del os.environ[CONFIGS_VARIABLE]
            else:
                os.environ[CONFIGS_VARIABLE] = before


def write_weights(config: ModelConfig, folder: Path) -> None:
    """Random weights of every component, float16, and a tokenizer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for component in COMPONENTS:
        with torch.device("meta"):
            module = create(component, config)
        save_file(random_state(module, torch.float16), folder / f"{component}.0.safetensors")
    shutil.copyfile(bundled_directory(TOKENIZED) / "tokenizer.json", folder / config.weights.tokenizer)


def random_state(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Small random values for every parameter of a module on the meta device, gains around one."""
    import torch

    generator = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK, generator=generator) * 0.02
    state = {}
    for name, parameter in module.named_parameters():
        count = parameter.numel()
        start = int(torch.randint(BLOCK, (), generator=generator))
        values = block.repeat(-(-count // BLOCK) + 1)[start : start + count].reshape(parameter.shape)
        is_gain = (parameter.ndim == 1 and name.endswith(("weight",))) or name.endswith("gamma")
        # A copy: torch.save would write the whole of the block that a slice belongs to.
        state[name] = (values + 1 if is_gain else values).to(dtype).clone()
    return state


def toml(values: Mapping[str, Any]) -> str:
    """Strings, numbers, truth values, lists and tables of them as TOML; no null."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # a basic string of TOML, its numbers, true and false
