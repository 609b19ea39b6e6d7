"""A model of the postcard family that is small enough to be exported and built in a test, with random weights.

Everything heavy is imported inside the fixtures, so that tests of the runtime alone still run without torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
dim = 48
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


@dataclass(frozen=True)
class Tiny:
    """Where the tiny model is. ``configs`` belongs into $RTGEN_CONFIGS."""

    configs: Path
    weights: Path
    store: Path

    @property
    def config(self) -> Any:
        import tomllib

        from rtgen.config.model import ModelConfig

        return ModelConfig.model_validate(tomllib.loads(TINY))

    def request(self, gpu: str = "cpu", **fields: Any) -> Any:
        """A build request for the tiny model, into the shared store unless ``store`` says otherwise."""
        from rtgen.build.request import BuildRequest

        return BuildRequest(gpu, **({"model": "tiny", "weights": self.weights, "store": self.store} | fields))


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
        save_weights(folder, component, dict(module.named_parameters()), most_bytes=-(-size // files) + 10_000)
    save_tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("tiny")
    found = Tiny(root / "configs", root / "weights", root / "store")
    (found.configs / "models").mkdir(parents=True)
    (found.configs / "models" / "tiny.toml").write_text(TINY, encoding="utf-8")
    write_weights(found.weights, found.config)
    return found


@pytest.fixture
def tiny_configs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny model, with its config where ``--model tiny`` finds it."""
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny.configs))
    return tiny


@pytest.fixture(scope="session")
def tiny_build(tiny: Tiny) -> Any:
    """The outcome of building the tiny model for the processor, once a session. Nobody may change its package."""
    pytest.importorskip("onnxruntime")
    from rtgen.build.walk import build
    from rtgen.progress import SilentProgress

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        return build(tiny.request(), SilentProgress())


@pytest.fixture(scope="session")
def tiny_modules(tiny: Tiny) -> dict[str, Any]:
    """The components of the tiny model in torch, float32, with the weights of the built package."""
    from rtgen.models.registry import COMPONENTS, load

    return {component: load(component, tiny.config, tiny.weights, "float32")[0] for component in COMPONENTS}


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_build: Any) -> Iterator[Any]:
    """A pipeline of the tiny package, shared; every stream starts afresh."""
    from rtgen.runtime.pipeline import Pipeline

    with Pipeline.open(tiny_build.package) as pipeline:
        yield pipeline
