"""``rtgen run``: what is refused before anything slow, and where videos go."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.cli.destination import SLUG_LENGTH, SUFFIXES, default_destination, slug
from rtgen.runtime.player import Change

OTHER_KEY = "cd34" * 16


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        ([], "prompt_invalid", "rtgen run --prompt"),
        (["--prompt", " \t"], "prompt_invalid", "rtgen run --prompt"),
        (["--prompt", "x", "--seconds", "1", "--frames", "3"], "usage", "give the one"),
        (["--prompt", "x", "--seconds", "0"], "usage", "--seconds 5"),
        (["--prompt", "x", "--seconds", "nan"], "usage", "--seconds 5"),
        (["--prompt", "x", "--seconds", "inf"], "usage", "--seconds 5"),
        (["--prompt", "x", "--frames", "-1"], "usage", "--frames 48"),
        (["--prompt", "x", "-o", "x.avi"], "usage", ".mp4"),
        (["--prompt", "x", "-o", "video"], "usage", ".mp4"),
        (["--prompt", "x", "-o", "nowhere/x.mp4"], "output", "--output"),
        (["--prompt", "x", "--seed", "-1"], "usage", "--help"),
        (["--prompt", "x", "--error-budget", "-0.1"], "usage", "0.05"),
        (["--prompt", "x", "--error-budget", "nan"], "usage", "0.05"),
        (["--prompt", "x", "--error-budget", "inf"], "usage", "0.05"),
        (["--prompt", "x", "--then", "0", "y"], "usage", "--then 3"),
        (["--prompt", "x", "--then", "nan", "y"], "usage", "--then 3"),
        (["--prompt", "x", "--then", "2", " "], "prompt_invalid", "rtgen run --prompt"),
        (["--prompt", "x", "--size", "129x128"], "size_unsupported", "--size 128x128"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_built(
    line: list[str], code: str, hint: str, toolchain: SimpleNamespace, rtgen: Any
) -> None:
    ran = rtgen("run", "--gpu", "cpu", *line, "--json")
    assert ran.json["error"]["code"] == code and hint in ran.json["error"]["hint"]
    assert ran.code == (1 if code == "output" else 2)
    assert not toolchain.requests and not toolchain.played


def test_a_missing_package_is_built_and_says_why(toolchain: SimpleNamespace, rtgen: Any) -> None:
    ran = rtgen("run", "--gpu", "t4", "--prompt", "a boat")
    assert ran.code == 0 and "no package of postcard for t4" in ran.err
    assert "no package" not in rtgen("run", "--gpu", "t4", "--prompt", "a boat").err


def test_no_build_fails_with_the_command_that_builds(toolchain: SimpleNamespace, rtgen: Any) -> None:
    ran = rtgen("run", "--gpu", "t4", "--prompt", "a boat", "--no-build")
    assert ran.code == 3 and "rtgen build --gpu t4" in ran.err and not toolchain.requests


def test_defaults_are_five_seconds_and_a_name_from_the_prompt(toolchain: SimpleNamespace, rtgen: Any) -> None:
    ran = rtgen("run", "--gpu", "cpu", "--prompt", "  A red\nboat ", "-q")
    played = toolchain.played[0]
    assert ran.out == "a-red-boat-0.mp4\n" and played.prompt == "A red boat"
    from rtgen.config.load import load_model

    assert played.frames == 5 * load_model("postcard").frames_per_second


def test_people_see_the_speed_and_what_to_know(toolchain: SimpleNamespace, rtgen: Any) -> None:
    ran = rtgen("run", "--gpu", "cpu", "--prompt", "a boat", "--frames", "48")
    assert "warning: the prompt was cut" in ran.err and "video: done" in ran.err
    assert "48 frames in 2.0 s: 24.0 FPS, first frame after 0.20 s (onnxruntime, CPU, 2 threads)" in ran.err
    assert toolchain.closed


def test_a_budget_is_handed_on_and_what_it_saved_is_told(toolchain: SimpleNamespace, rtgen: Any) -> None:
    fixed = rtgen("run", "--gpu", "cpu", "--prompt", "a boat", "--json").json["data"]
    assert (fixed["error_budget"], fixed["denoise_passes"], fixed["saved_passes"]) == (0, 4, 0)
    assert "denoise passes" not in rtgen("run", "--gpu", "cpu", "--prompt", "a boat").err
    line = ("run", "--gpu", "cpu", "--prompt", "a boat", "--error-budget", "0.05")
    assert "2.5 denoise passes a chunk, 38% left out" in rtgen(*line).err
    saving = rtgen(*line, "--json").json["data"]
    assert (saving["error_budget"], saving["denoise_passes"], saving["saved_passes"]) == (0.05, 2.5, 0.375)
    assert [played.error_budget for played in toolchain.played] == [0, 0, 0.05, 0.05]


def test_the_summary_tells_steady_and_loop_speed_apart_and_the_gpu_where_there_is_one(
    toolchain: SimpleNamespace, rtgen: Any
) -> None:
    line = ("run", "--gpu", "cpu", "--prompt", "a boat")
    told = rtgen(*line).err
    assert "after the first chunk 26.0 FPS; denoising alone 50.0 FPS" in told
    assert "time between chunks 1.10 (95 %) and 1.25 (longest) of the median" in told
    assert "GPU" not in told and "real time" not in told
    data = rtgen(*line, "--json").json["data"]
    assert (data["steady_fps"], data["loop_fps"], data["gpu_power_w"], data["pace"]) == (26.0, 50.0, None, "fastest")
    toolchain.gpu.update(gpu_memory_bytes=3 << 29, gpu_power_w=87.4, gpu_utilisation=0.93)
    assert "GPU: 1.50 GiB in use, 87 W, 93% busy" in rtgen(*line).err


def test_real_time_plays_at_the_models_rate_and_tells_what_it_shed(toolchain: SimpleNamespace, rtgen: Any) -> None:
    line = ("run", "--gpu", "cpu", "--prompt", "a boat", "--pace", "realtime", "--error-budget", "0.05")
    assert "real time: 6 passes shed, 5 frames dropped, 0.5 s of pauses" in rtgen(*line).err
    pace = toolchain.played[0].pace
    assert (pace._rate, pace.budget) == (16, 0.05)
    assert rtgen(*line, "--json").json["data"]["pace"] == "realtime"
    assert rtgen("run", "--prompt", "x", "--pace", "slow").code == 2


def test_later_prompts_are_handed_on_with_the_frames_before_them(toolchain: SimpleNamespace, rtgen: Any) -> None:
    later = ("--then", "1.5", "a red boat", "--then", "4", " a  boat at\nnight")
    assert rtgen("run", "--gpu", "cpu", "--prompt", "a boat", *later).code == 0
    assert toolchain.played[0].then == [Change(24, "a red boat"), Change(64, "a boat at night")]


def test_a_later_size_is_handed_on_and_has_to_be_served_too(toolchain: SimpleNamespace, rtgen: Any) -> None:
    line = ("run", "--gpu", "cpu", "--prompt", "a boat", "--then", "2")
    assert rtgen(*line, "size=96x160", "--then", "3", "size of a boat").code == 0
    assert toolchain.played[0].then == [Change(32, size=(96, 160)), Change(48, "size of a boat")]
    for size, reason in (("90x90", "multiples of 16"), ("big", "'big' is not a size"), ("256x256", "not 256x256")):
        ran = rtgen(*line, f"size={size}")
        assert ran.code == 2 and reason in ran.err and len(toolchain.played) == 1


def test_a_size_outside_the_profiles_is_refused_with_the_command_that_builds_it(
    toolchain: SimpleNamespace, rtgen: Any, add: Any
) -> None:
    toolchain.keys[((256, 256),)] = OTHER_KEY
    ran = rtgen("run", "--gpu", "cpu", "--prompt", "x", "--size", "256x256")
    assert ran.code == 2 and "96x96 to 192x192, not 256x256" in ran.err and not toolchain.requests
    assert "rtgen build --gpu cpu --model postcard --size 256x256" in ran.err
    add(key=OTHER_KEY)
    assert rtgen("run", "--gpu", "cpu", "--prompt", "x", "--size", "256x256").code == 0


def test_the_decoder_reaches_the_build(toolchain: SimpleNamespace, rtgen: Any) -> None:
    assert rtgen("build", "--gpu", "t4", "--decoder", "taehv").code == 0
    assert rtgen("run", "--gpu", "a100", "--prompt", "a boat", "--decoder", "vae").code == 0
    assert rtgen("build", "--gpu", "rtx4090").code == 0
    assert [request.decoder for request in toolchain.requests] == ["taehv", "vae", None]
    ran = rtgen("build", "--gpu", "t4", "--decoder", "nerf", "--json")
    assert ran.code == 2 and ran.json["error"]["code"] == "usage"


def test_the_decoders_that_can_be_asked_for_are_those_of_the_configs() -> None:
    from rtgen.cli.options import DECODERS
    from rtgen.config.model import Decoder

    assert get_args(Decoder) == DECODERS


def test_a_damaged_package_is_built_again_and_says_so(toolchain: SimpleNamespace, rtgen: Any, store: Path) -> None:
    next(store.glob("postcard/cpu/*/denoiser.data")).write_bytes(b"")
    ran = rtgen("run", "--gpu", "cpu", "--prompt", "x")
    assert ran.code == 0 and "is damaged" in ran.err and len(toolchain.requests) == 1


def test_a_gpu_package_without_a_gpu_is_refused_before_it_is_built(
    toolchain: SimpleNamespace, rtgen: Any, provide: Any
) -> None:
    provide("rtgen.runtime.select", detect_gpus=lambda: ())
    ran = rtgen("run", "--gpu", "t4", "--prompt", "x", "--json")
    assert ran.code == 3 and ran.json["error"]["code"] == "no_gpu" and "--gpu cpu" in ran.json["error"]["hint"]
    assert not toolchain.requests


def test_a_video_on_stdout_sends_data_to_stderr(toolchain: SimpleNamespace, rtgen: Any) -> None:
    ran = rtgen("run", "--gpu", "cpu", "--prompt", "x", "-o", "-", "--json")
    assert ran.out == "" and '"ok": true' in ran.err
    failed = rtgen("run", "--gpu", "cpu", "-o", "-", "--json")
    assert failed.out == "" and '"prompt_invalid"' in failed.err


def test_names_never_collide(folder: Path) -> None:
    for _ in range(3):
        (folder / default_destination("a boat", 7, folder)).touch()
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["a-boat-7-2.mp4", "a-boat-7-3.mp4", "a-boat-7.mp4"]


@given(st.text(max_size=200))
def test_names_are_plain(prompt: str) -> None:
    name = slug(prompt)
    assert len(name) <= SLUG_LENGTH and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.startswith("-") and not name.endswith("-")


def test_the_accepted_suffixes_are_those_of_the_sink() -> None:
    from rtgen.runtime import sink

    assert set(SUFFIXES) == set(sink._CONTAINERS)
