"""What a package key depends on, and what it must not depend on. Nothing is built here."""

import os
import shutil
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build import plan
from rtgen.build.walk import package_key
from rtgen.config.locate import data_directory
from rtgen.engine import trt


@pytest.fixture
def world(tiny, tmp_path, monkeypatch):
    """A world of its own with the tiny model, for a test to change in one place."""
    return World(tiny, tmp_path, monkeypatch)


class World:
    def __init__(self, tiny, root, monkeypatch):
        self.configs, self.monkeypatch = root / "configs", monkeypatch
        shutil.copytree(tiny.configs, self.configs)
        for folder, name in (("gpus", "cpu"), ("recipes", "fp32")):
            (self.configs / folder).mkdir()
            shutil.copy(data_directory("configs") / folder / f"{name}.toml", self.configs / folder)
        self.replace("gpus/cpu", 'default_recipe = "int8-cpu"', 'default_recipe = "fp32"')
        self.weights = root / "weights"
        shutil.copytree(tiny.weights, self.weights)
        monkeypatch.setenv("RTGEN_CONFIGS", str(self.configs))
        self.request = lambda **fields: tiny.request(**({"weights": self.weights, "store": root / "store"} | fields))

    def replace(self, name, before, after):
        """Edit a config."""
        file = self.configs / f"{name}.toml"
        text = file.read_text(encoding="utf-8")
        assert before in text
        file.write_text(text.replace(before, after), encoding="utf-8")

    def damage(self, name):
        """Change one bit at the end of a weights file."""
        content = bytearray((self.weights / name).read_bytes())
        content[-1] ^= 1
        (self.weights / name).write_bytes(content)

    def rename(self, before, after):
        """Rename a weights file, in its folder and in the config."""
        (self.weights / before).rename(self.weights / after)
        self.replace("models/tiny", before, after)


def half_precision(world):
    text = (world.configs / "recipes" / "fp32.toml").read_text(encoding="utf-8").replace('"fp32"', '"half"')
    (world.configs / "recipes" / "half.toml").write_text(text.replace("float32", "float16"), encoding="utf-8")
    return {"recipe": "half"}


def other_recipe(world):
    text = (world.configs / "recipes" / "fp32.toml").read_text(encoding="utf-8").replace('"fp32"', '"full"')
    (world.configs / "recipes" / "full.toml").write_text(text, encoding="utf-8")
    return {"recipe": "full"}


CHANGES = {
    "a bit of the denoiser": lambda world: world.damage("denoiser.1.safetensors"),
    "a bit of the decoder": lambda world: world.damage("decoder.0.safetensors"),
    "a file's name, which the graphs hold": lambda world: world.rename("decoder.0.safetensors", "d.safetensors"),
    "the tokenizer": lambda world: (world.weights / "tokenizer.json").open("a").write("\n"),
    "precision": half_precision,
    "recipe": other_recipe,
    "size": lambda world: {"sizes": ((48, 48),)},
    "another size": lambda world: {"sizes": ((48, 64),)},
    "profile": lambda world: world.replace("models/tiny", "max = [64, 64]", "max = [64, 80]"),
    "default size": lambda world: world.replace("models/tiny", "default = [48, 48]", "default = [64, 64]"),
    "schedule": lambda world: world.replace("models/tiny", "[1000, 500]", "[1000, 501]"),
    "sampler": lambda world: world.replace("models/tiny", '"euler"', '"renoise"'),
    "sink": lambda world: world.replace("models/tiny", "sink = 3", "sink = 0"),
    "window": lambda world: world.replace("models/tiny", "window = 9", "window = 12"),
    "theta": lambda world: world.replace("models/tiny", "frequency_dim", "rope_theta = 9999\nfrequency_dim"),
    "frame rate": lambda world: world.replace("models/tiny", "frames_per_second = 16", "frames_per_second = 24"),
    "memory": lambda world: world.replace("gpus/cpu", "vram_gib = 16", "vram_gib = 8"),
    "compiler version": lambda world: world.monkeypatch.setattr(plan, "onnxruntime_version", lambda: "99.0"),
    "exporter version": lambda world: world.monkeypatch.setattr(
        plan, "installed_toolchain", lambda **_: dict.fromkeys(("torch", "onnx", "onnx-ir", "onnxscript"), "99.0")
    ),
    "sources": lambda world: world.monkeypatch.setattr(plan, "exporter_sources", lambda: "0" * 64),
}


def at_another_time(world):
    for file in world.weights.iterdir():
        os.utime(file, (1, 1))
    world.monkeypatch.setattr(time, "time", lambda: 2e9)


def moved_weights(world):
    target = world.weights.with_name("moved")
    world.weights.rename(target)
    return {"weights": target}


SAME = {
    "nothing": lambda world: None,
    "store": lambda world: {"store": world.configs.with_name("elsewhere")},
    "time": at_another_time,
    "force": lambda world: {"force": True},
    "place of the weights": moved_weights,
    "name of the recipe, left out": lambda world: {"recipe": None},
    "title of the model": lambda world: world.replace("models/tiny", "A model for tests", "A model"),
    "title of the GPU": lambda world: world.replace("gpus/cpu", "8 cores", "4 cores"),
    "title of the recipe": lambda world: world.replace("recipes/fp32", "FP32 weights", "Weights"),
    "bandwidth": lambda world: world.replace("gpus/cpu", "bandwidth_gb_s = 51.2", "bandwidth_gb_s = 60"),
    "licence": lambda world: world.replace("models/tiny", "Apache-2.0", "MIT"),
    "comment": lambda world: world.replace("models/tiny", "[cache]", "# how much it remembers\n[cache]"),
}


def fields(changed):
    """What a change asks of the request; most change the world only."""
    return changed if isinstance(changed, dict) else {}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_key_changes_with(world, change):
    before = package_key(world.request())
    assert package_key(world.request(**fields(change(world)))) != before


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_the_key_does_not_change_with(world, change):
    before = package_key(world.request())
    assert package_key(world.request(**fields(change(world)))) == before


@pytest.mark.parametrize("name", ["schedule", "sampler", "frame rate", "size", "recipe", "memory", "the tokenizer"])
def test_what_no_graph_holds_leaves_the_export_as_it_is(world, name):
    before = plan.plan_build(world.request()).export_key
    assert plan.plan_build(world.request(**fields(CHANGES[name](world)))).export_key == before


@pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_kernels_compiler_is_part_of_the_keys_of_packages_that_may_have_kernels(world):
    requests = [world.request(gpu="rtx4080-laptop"), world.request()]
    before = [package_key(request) for request in requests]
    world.monkeypatch.setattr(plan.kernels, "compiler_version", lambda: "99.0")
    after = [package_key(request) for request in requests]
    assert after[0] != before[0] and after[1] == before[1]
