import pytest

from rtgen.engine.manifest import (
    CompilerEntry,
    ComponentEntry,
    Manifest,
    MemoryPlan,
    ModelEntry,
    ProfileEntry,
    StateEntry,
    TargetEntry,
    TensorEntry,
)

DIGEST = "0" * 64


@pytest.fixture
def make_manifest():
    """A manifest around one component; keyword arguments replace fields."""

    def make(component=None, **fields):
        # y = x + counter, counter' = counter + 1, with a weight in an external file where the backend has one.
        component = component or ComponentEntry(
            file="denoiser.onnx",
            weights=("denoiser.data",),
            inputs=(
                TensorEntry(name="x", dtype="float32", shape=(1, "rows*columns")),
                TensorEntry(name="ring", dtype="float32", shape=(1, "rows*columns")),
                TensorEntry(name="cache", dtype="float32", shape=(2,)),
            ),
            outputs=(
                TensorEntry(name="y", dtype="float32", shape=(1, "rows*columns")),
                TensorEntry(name="ring_next", dtype="float32", shape=(1, "rows*columns")),
                TensorEntry(name="cache_next", dtype="float32", shape=(2,)),
            ),
            states=(
                StateEntry(input="ring", output="ring_next", update="in_place"),
                StateEntry(input="cache", output="cache_next", update="swap"),
            ),
        )
        defaults = {
            "key": DIGEST,
            "rtgen": "0.1.0",
            "model": ModelEntry(
                name="postcard", digest=DIGEST, frames_per_second=16, example_prompts=("a boat",),
                default_size=(64, 64), size_step=(16, 16), latent_channels=16, spatial_stride=8, temporal_stride=4,
                decoder="vae",
                dropped_frames=0,
                chunk=3, window=12, sink=0, position_limit=1024,
                sigmas=(1.0, 0.5), sampler="euler", rope_split=(12, 10, 10),
                rope_theta=10000.0, prompt_tokens=8, tokenizer="tokenizer.json",
            ),
            "target": TargetEntry(gpu="cpu", compute_capability=None, vram_bytes=1 << 30),
            "recipe": "fp32",
            "compiler": CompilerEntry(name="onnxruntime", version="1.31.1"),
            "profiles": (
                ProfileEntry(min=(32, 32), opt=(64, 64), max=(128, 128)),
                ProfileEntry(min=(64, 64), opt=(96, 96), max=(256, 256)),
            ),
            "components": {"denoiser": component},
            "memory_plan": MemoryPlan(
                weights=1 << 30, activations=1 << 30, kv_ring=0, decoder_state=0, io=0, context=0, vram=8 << 30
            ),
            "files": {},
        }  # fmt: skip
        return Manifest(**(defaults | fields))

    return make
