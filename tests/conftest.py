"""Models that are small enough to be exported and built in a test, with random weights.

``tiny`` is a postcard in small. ``tiny-wan`` has what the postcard lacks of Wan: the autoencoder of Wan 2.1, whose
first latent frame is a single pixel frame, and Self-Forcing's sampler. ``tiny-taehv`` is the same with TAEHV for a
decoder, which takes one latent frame at a time, and ``tiny-host`` is ``tiny`` with its text encoder on the host.

Everything heavy is imported inside the fixtures, so that tests of the runtime alone still run without torch.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# The models are so small that torch's threads would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = """
name = "tiny"
title = "A model for tests"
frames_per_second = 16
example_prompts = ["a red kite drifts right over the sea"]

[text_encoder]
vocabulary = 512
dim = 16
heads = 2
head_dim = 8
ffn_dim = 32
layers = 2
max_tokens = 12

[denoiser]
dim = 64  # TensorRT fuses attention for heads of 32, not for heads of 24
layers = 2
heads = 2
ffn_dim = 64
frequency_dim = 32

[cache]
chunk = 3
window = 9
sink = 3

[autoencoder]
latent_channels = 4
base_channels = 8
multipliers = [1, 2, 4]
residual_blocks = 1
temporal_downsample = [true, true]
pixel_patch = 2
latent_mean = [0.1, -0.2, 0.0, 0.3]
latent_std = [1.1, 0.9, 1.0, 1.2]

[schedule]
timesteps = [1000, 500]
shift = 3.0
sampler = "euler"

[resolution]
default = [48, 48]
profiles = [{ min = [32, 32], opt = [48, 48], max = [64, 64] }]

[weights]
directory = "bundled"
text_encoder = ["text_encoder.0.safetensors"]
denoiser = ["denoiser.0.safetensors", "denoiser.1.safetensors"]
decoder = ["decoder.0.safetensors"]
tokenizer = "tokenizer.json"
licence = "Apache-2.0"
"""

WAN_DIFFERENCES = {
    'name = "tiny"': 'name = "tiny-wan"',
    "sink = 3": "sink = 0",
    "multipliers = [1, 2, 4]": "multipliers = [1, 2, 2, 2]",
    "temporal_downsample = [true, true]": "temporal_downsample = [false, true, true]\nsingle_first_frame = true",
    "pixel_patch = 2": "pixel_patch = 1",
    'sampler = "euler"': 'sampler = "renoise"',
}
HOST_DIFFERENCES = {'name = "tiny"': 'name = "tiny-host"', "max_tokens = 12": 'max_tokens = 12\nruns_on = "host"'}
TAEHV_DIFFERENCES = {'name = "tiny-wan"': 'name = "tiny-taehv"\ndecoder = "taehv"\ndecode_frames = 1'}


def changed(text: str, differences: dict[str, str]) -> str:
    for before, after in differences.items():
        assert before in text
        text = text.replace(before, after)
    return text


CONFIGS = {"tiny": TINY, "tiny-wan": changed(TINY, WAN_DIFFERENCES), "tiny-host": changed(TINY, HOST_DIFFERENCES)}
CONFIGS["tiny-taehv"] = changed(CONFIGS["tiny-wan"], TAEHV_DIFFERENCES)


@dataclass(frozen=True)
class Tiny:
    """One of the models and where it is. ``configs`` belongs into $RTGEN_CONFIGS."""

    name: str
    configs: Path
    weights: Path
    store: Path

    @property
    def config(self) -> Any:
        import tomllib

        from rtgen.config.model import ModelConfig

        return ModelConfig.model_validate(tomllib.loads(CONFIGS[self.name]))

    def request(self, gpu: str = "cpu", **fields: Any) -> Any:
        """A build request for the model, into the shared store and unquantized unless ``fields`` say otherwise."""
        from rtgen.build.request import BuildRequest

        recipe = "fp32" if gpu == "cpu" else "fp16"
        usual = {"model": self.name, "weights": self.weights, "store": self.store, "recipe": recipe}
        return BuildRequest(gpu, **(usual | fields))

    def build(self) -> Any:
        """The outcome of building the model for the processor into the shared store."""
        from rtgen.build.walk import build
        from rtgen.progress import SilentProgress

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RTGEN_CONFIGS", str(self.configs))
            return build(self.request(), SilentProgress())

    def modules(self) -> dict[str, Any]:
        """The components in torch, float32, with the weights of the built package."""
        from rtgen.models.registry import COMPONENTS, load

        return {component: load(component, self.config, self.weights, "float32")[0] for component in COMPONENTS}


def write_weights(folder: Path, config: Any) -> None:
    """Random weights and the tokenizer in the layout of a shipped model: float16, the denoiser in two files."""
    from rtgen.models.registry import COMPONENTS, create
    from scripts.postcard.tokens import save_tokenizer
    from scripts.postcard.training import save_weights
    from tests.models.random_weights import random_weights

    for seed, component in enumerate(COMPONENTS):
        module = create(component, config)
        random_weights(module, seed)
        size = sum(value.numel() * 2 for value in module.parameters())
        files = len(getattr(config.weights, component))
        save_weights(folder, component, dict(module.named_parameters()), most_bytes=-(-size // files) + 20_000)
        assert len(list(folder.glob(f"{component}.*"))) == files
    save_tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    """All models by name, in one store."""
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("models")
    (root / "configs" / "models").mkdir(parents=True)
    found = {}
    for name, text in CONFIGS.items():
        (root / "configs" / "models" / f"{name}.toml").write_text(text, encoding="utf-8")
        found[name] = Tiny(name, root / "configs", root / f"{name}-weights", root / "store")
        write_weights(found[name].weights, found[name].config)
    return found


@pytest.fixture(scope="session")
def tiny_built(tiny_models: dict[str, Tiny]) -> Callable[[str], Any]:
    """The outcome of building one of the models for the processor, once a session. Nobody may change its package."""
    pytest.importorskip("onnxruntime")
    return cache(lambda name: tiny_models[name].build())


@pytest.fixture
def tiny(tiny_models: dict[str, Tiny], monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The model ``tiny``, with its config where ``--model tiny`` finds it."""
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny_models["tiny"].configs))
    return tiny_models["tiny"]
