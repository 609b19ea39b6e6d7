"""A model from published checkpoint files: found, converted once, then built like any other."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build.request import BuildRequest  # noqa: E402
from rtgen.build.walk import build, package_key  # noqa: E402
from rtgen.cli.main import run  # noqa: E402
from rtgen.errors import CheckpointError  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402

WAN_FILES = ("models_t5_umt5-xxl-enc-bf16.pth", "self_forcing_dmd.pt", "Wan2.1_VAE.pth", "tokenizer.json")


def publish(modules, tokenizer: Path, folder: Path) -> None:
    """Weights of the components in the files that Wan and Self-Forcing publish."""
    folder.mkdir()
    text, denoiser, decoder = (dict(modules[name].state_dict()) for name in ("text_encoder", "denoiser", "decoder"))
    torch.save(text, folder / WAN_FILES[0])
    averaged = {f"model.{name}": value for name, value in denoiser.items()}
    plain = {name: torch.zeros_like(value) for name, value in averaged.items()}
    torch.save({"generator": plain, "generator_ema": averaged}, folder / WAN_FILES[1])
    torch.save(decoder | {"encoder.conv1.weight": torch.zeros(3)}, folder / WAN_FILES[2])
    (folder / WAN_FILES[3]).write_bytes(tokenizer.read_bytes())


@pytest.fixture(scope="module")
def world(tiny_models, tmp_path_factory):
    """A folder of published files with the weights of ``tiny-wan``, its request, and the environment it needs."""
    tiny, root = tiny_models["tiny-wan"], tmp_path_factory.mktemp("published")
    text = (tiny.configs / "models" / "tiny-wan.toml").read_text(encoding="utf-8")
    head, _, _ = text.partition("[weights]")
    text = head.replace('name = "tiny-wan"', 'name = "tiny-published"')
    text += '[weights]\ndirectory = ""\npublished = "self-forcing"\nlicence = "none"\n'
    (root / "configs" / "models").mkdir(parents=True)
    (root / "configs" / "models" / "tiny-published.toml").write_text(text, encoding="utf-8")
    publish(tiny.modules(), tiny.weights / "tokenizer.json", root / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(root / "configs"))
        yield BuildRequest("cpu", "tiny-published", "fp32", (), root / "files", root / "store")


@pytest.fixture(scope="module")
def outcome(world):
    return build(world, SilentProgress())


def test_the_frames_are_those_of_the_same_weights_in_our_own_files(outcome, tiny_built):
    def frames(package):
        with Pipeline.open(package) as pipeline:
            return np.concatenate(list(pipeline.stream("a red kite over the sea", seed=4, frames=21)))

    found, expected = frames(outcome.package), frames(tiny_built("tiny-wan").package)
    assert expected.std() > 20 and np.array_equal(found, expected)


def test_conversion_is_a_stage_that_later_builds_share(outcome, world):
    assert [stage.name for stage in outcome.stages if not stage.cached][:1] == ["weights"]
    again = build(world, SilentProgress())
    assert again.cached and again.key == outcome.key and again.seconds < 2


def test_any_byte_of_any_file_is_in_the_key(outcome, world, tmp_path):
    for name in WAN_FILES:
        copy = tmp_path / name
        copy.mkdir()
        for file in WAN_FILES:
            (copy / file).write_bytes((world.weights / file).read_bytes())
        with (copy / name).open("ab") as stream:
            stream.write(b" ")
        assert package_key(BuildRequest("cpu", world.model, "fp32", (), copy, world.store)) != outcome.key


def test_missing_and_misfit_files_are_refused_before_anything_is_written(world, tmp_path):
    request = BuildRequest("cpu", world.model, "fp32", (), tmp_path, tmp_path / "store")
    with pytest.raises(CheckpointError, match=r"models_t5_umt5-xxl-enc-bf16\.pth of Wan-AI"):
        build(request, SilentProgress())
    for file in WAN_FILES:
        (tmp_path / file).write_bytes((world.weights / file).read_bytes())
    torch.save({"generator": {"model.head.head.weight": torch.zeros(2, 2)}}, tmp_path / WAN_FILES[1])
    with pytest.raises(CheckpointError, match="missing"):
        build(request, SilentProgress())
    assert not list((tmp_path / "store").glob(".stages/*/*"))


def test_model_show_tells_what_is_there(world, capsys):
    assert run(["model", "show", world.model, "--weights", str(world.weights), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["data"]["files"]
    chosen = {file["piece"]: Path(file["found"]).name for file in files if file["chosen"]}
    assert chosen == dict(zip(("text_encoder", "denoiser", "decoder", "tokenizer"), WAN_FILES, strict=True))
    assert all(file["repository"].count("/") == 1 for file in files)
