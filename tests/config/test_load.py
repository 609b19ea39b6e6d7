"""Loading configs: what is accepted, and the one clear line for what is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.config import load
from rtgen.errors import ConfigError, UnknownNameError, UsageError

GPU = """\
name = "mine"
title = "My GPU"
architecture = "Ada Lovelace"
compiler = "tensorrt_rtx"
compute_capability = "8.9"
vram_gib = 8
bandwidth_gb_s = 256
board_power_w = 115
default_recipe = "fp16"
device_names = ["NVIDIA My GPU"]
sources = ["a label"]
[throughput_tops]
fp32 = 20
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put a file into the user's config folder."""
    monkeypatch.setenv("RTGEN_CONFIGS", str(tmp_path))

    def write(text: str | bytes, path: str = "gpus/mine.toml") -> Path:
        target = tmp_path / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    return write


def test_every_shipped_config_loads() -> None:
    assert all(load.load_gpu(name).name == name for name in load.list_gpus())
    assert all(load.load_model(name).name == name for name in load.list_models())
    for_processors = {"fp32": "float32", "int8-cpu": "float32"}
    for_gpus = dict.fromkeys(("fp16", "fp8", "int4", "int4-awq", "int4-weights", "int8", "nvfp4"), "float16")
    assert {name: load.load_recipe(name).precision for name in load.list_recipes()} == for_processors | for_gpus


def test_user_config_is_loaded_and_overrides_the_shipped_one(write: Write) -> None:
    write(GPU)
    write(GPU.replace('"mine"', '"rtx4090"').replace("256", "999"), "gpus/rtx4090.toml")
    assert load.load_gpu("mine").title == "My GPU"
    assert load.load_gpu("rtx4090").bandwidth_gb_s == 999
    assert {"mine", "cpu"} <= set(load.list_gpus())


def test_files_written_on_windows_load(write: Write) -> None:
    write(b"\xef\xbb\xbf" + GPU.replace("\n", "\r\n").encode())
    assert load.load_gpu("mine").sm == "sm_89"


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown gpu 'rtx4080-latpop'") as caught:
        load.load_gpu("rtx4080-latpop")
    assert "did you mean rtx4080-laptop" in str(caught.value.hint)
    with pytest.raises(UnknownNameError, match="unknown recipe 'fp-16'"):
        load.load_recipe("fp-16")


@pytest.mark.parametrize(
    "name", ["../recipes/fp16", "..\\recipes\\fp16", "../gpus/cpu", "./cpu", "cpu.toml", "CPU", "cpu\0", "", ".", "con"]
)
def test_names_that_are_paths_are_only_unknown(name: str) -> None:
    for loader in (load.load_gpu, load.load_model, load.load_recipe):
        with pytest.raises(UnknownNameError):
            loader(name)


@given(st.text(max_size=40))
def test_any_text_is_a_known_name_or_a_usage_error(name: str) -> None:
    if name not in load.list_recipes():
        with pytest.raises(UnknownNameError):
            load.load_recipe(name)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("vram_gib", "vram_gb", r"vram_gb: unknown key, did you mean 'vram_gib'\? \(and 1 more problem\)$"),
        ("fp32 = 20", "fp32 = 20\nfp61 = 2", r"throughput_tops\.fp61: unknown key, did you mean 'fp16'\?$"),
        ("fp32 = 20", "", r"throughput_tops\.fp32: is missing$"),
        ("vram_gib = 8", 'vram_gib = "much"', r"vram_gib: should be a valid number"),
        ("vram_gib = 8", "vram_gib = -8", r"vram_gib: should be greater than 0$"),
        ("tensorrt_rtx", "tensorflow", r"compiler: should be 'tensorrt_rtx', 'tensorrt', 'onnxruntime' or 'torch'$"),
        ('name = "mine"', 'name = "yours"', r"name: is 'yours', but the file is called 'mine'$"),
        ('compute_capability = "8.9"', "", r"compute_capability: compiler 'tensorrt_rtx' needs one$"),
        ('"fp16"', '"fp17"', r"default_recipe: there is no recipe 'fp17'$"),
        ('"fp16"', '"fp32"', r"default_recipe: recipe 'fp32' is for onnxruntime and torch, but mine uses"),
        ('"8.9"', '"7.0"', r"default_recipe: recipe 'fp16' runs on compute capability 7\.5, .*, but mine has 7\.0$"),
        ("= 8\n", "= = 8\n", r"is not valid TOML: .*line 6"),
        ("[throughput_tops]", "x = " + "[" * 5000, r"is not valid TOML"),
    ],
)
def test_invalid_file_is_one_clear_line(write: Write, old: str, new: str, problem: str) -> None:
    path = write(GPU.replace(old, new, 1))
    with pytest.raises(ConfigError, match=problem) as caught:
        load.load_gpu("mine")
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message
    assert "rtgen gpu show " in str(caught.value.hint)


def test_files_that_are_not_text_or_too_large_are_refused(write: Write) -> None:
    write(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 0\)"):
        load.load_gpu("mine")
    write(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        load.load_gpu("mine")


def test_folder_in_place_of_a_file_is_refused(write: Write) -> None:
    write(GPU).unlink()
    (write("", "gpus/other.toml").parent / "mine.toml").mkdir()
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read"):
        load.load_gpu("mine")


def test_recipe_that_cannot_run_names_those_that_can() -> None:
    with pytest.raises(UsageError, match="recipe 'fp16' is for tensorrt_rtx, tensorrt and torch, but cpu") as caught:
        load.recipe_for(load.load_gpu("cpu"), load.load_recipe("fp16"))
    assert caught.value.hint == "use --recipe fp32 or int8-cpu"
    load.recipe_for(load.load_gpu("t4"), load.load_recipe("fp16"))


def test_a_recipe_is_refused_on_a_compute_capability_that_it_does_not_name() -> None:
    recipe = load.load_recipe("fp16").model_copy(update={"compute_capabilities": ("8.9", "12.0")})
    load.recipe_for(load.load_gpu("rtx5090"), recipe)
    with pytest.raises(UsageError, match=r"runs on compute capability 8\.9, 12\.0, but rtx3080 has 8\.6") as caught:
        load.recipe_for(load.load_gpu("rtx3080"), recipe)
    assert caught.value.hint is not None and caught.value.hint.startswith("use --recipe fp16")


@pytest.mark.parametrize(
    ("device", "capability", "vram", "expected"),
    [
        ("NVIDIA GeForce RTX 4080 Laptop GPU", "8.9", 11.99, "rtx4080-laptop"),
        ("Tesla T4", "7.5", 14.75, "t4"),
        ("NVIDIA GeForce RTX 3080", "8.6", 12.0, "rtx3080"),  # the 12 GB board of that name
        ("NVIDIA GeForce RTX 3060", "8.6", 8.0, "rtx3070-laptop"),  # the 8 GB board: a plan for 12 GB would not hold
        ("NVIDIA A100 80GB PCIe", "8.0", 80.0, "a100"),
        ("NVIDIA RTX 6000 Ada Generation", "8.9", 48.0, "l40s"),
        ("NVIDIA H200 MIG 1g.18gb", "9.0", 16.0, "h100"),
        ("NVIDIA GeForce RTX 4090", "5.2", 24.0, None),
    ],
)
def test_match_gpu(device: str, capability: str, vram: float, expected: str | None) -> None:
    found = load.match_gpu(device, capability, vram)
    assert (found.name if found else None) == expected
