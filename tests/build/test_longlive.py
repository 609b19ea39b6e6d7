"""LongLive: a base and an adapter, a short window with a sink; and the choice of its decoder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build.request import BuildRequest  # noqa: E402
from rtgen.build.verify import plan_of  # noqa: E402
from rtgen.build.walk import build, package_key  # noqa: E402
from rtgen.cli.main import run  # noqa: E402
from rtgen.config.load import load_model  # noqa: E402
from rtgen.errors import CheckpointError, UsageError  # noqa: E402
from rtgen.models.taehv import TinyDecoder  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from tests.build.reference_sampler import ReferenceSampler  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
QUIET = SilentProgress()
SIZE, CHUNKS, SWITCH = (32, 48), 7, 6
"""Window 9 holds three chunks, so the fourth is the first that overwrites one, and the sink is not it."""
RANK, ALPHA = 4, 256.0


def adapter(weights):
    """A rank-4 adapter of every matrix in the blocks, as peft names it, and the weights it leads to."""
    generator = torch.Generator().manual_seed(8)
    parts, merged = {}, dict(weights)
    for name, weight in weights.items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            down = torch.randn(RANK, weight.shape[1], generator=generator) * 0.02
            up = torch.randn(weight.shape[0], RANK, generator=generator) * 0.02
            module = f"base_model.model.{name.removesuffix('.weight')}"
            parts |= {f"{module}.lora_A.weight": down.bfloat16(), f"{module}.lora_B.weight": up.bfloat16()}
            change = ALPHA / RANK * (up.bfloat16().double() @ down.bfloat16().double())
            merged[name] = (weight.double() + change).half().float()
    return parts, merged


def tiny_decoder():
    decoder = TinyDecoder(4).eval()
    random_weights(decoder, 5)
    return decoder


def publish(modules, tokenizer, folder):
    """Files as LongLive, Wan and TAEHV publish them, and the denoiser's weights that they amount to."""
    (folder / "longlive_models" / "models").mkdir(parents=True)
    base = {name: value.clone() for name, value in modules["denoiser"].named_parameters()}
    parts, merged = adapter(base)
    checkpoint = {f"model.{name}": value for name, value in base.items()}
    torch.save({"generator": checkpoint, "step": 3000}, folder / "longlive_models" / "models" / "longlive_base.pt")
    torch.save({"generator_lora": parts}, folder / "longlive_models" / "models" / "lora.pt")
    torch.save(dict(modules["text_encoder"].named_parameters()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(dict(modules["decoder"].named_parameters()), folder / "Wan2.1_VAE.pth")
    torch.save(dict(tiny_decoder().named_parameters()), folder / "taew2_1.pth")
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return merged


@pytest.fixture(scope="module")
def world(tiny_models, tmp_path_factory):
    """A small LongLive: its files, the request that builds it, the modules they amount to, and its environment."""
    tiny, root = tiny_models["tiny-wan"], tmp_path_factory.mktemp("longlive")
    head = (tiny.configs / "models" / "tiny-wan.toml").read_text(encoding="utf-8").partition("[weights]")[0]
    text = head.replace('name = "tiny-wan"', 'name = "tiny-longlive"').replace("sink = 0", "sink = 3")
    text += '[weights]\ndirectory = ""\npublished = "longlive"\nlicence = "none"\n'
    (root / "configs" / "models").mkdir(parents=True)
    (root / "configs" / "models" / "tiny-longlive.toml").write_text(text, encoding="utf-8")
    modules = tiny.modules()
    (root / "files").mkdir()
    merged = publish(modules, tiny.weights / "tokenizer.json", root / "files")
    request = BuildRequest("cpu", "tiny-longlive", "fp32", (), root / "files", root / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(root / "configs"))
        yield SimpleNamespace(request=request, modules=modules, merged=merged, config=load_model("tiny-longlive"))


@pytest.fixture(scope="module")
def outcome(world):
    return build(world.request, QUIET)


def reference(world, *, merged=True, decoder=None, **cache):
    """The frames of plain torch; ``cache`` changes window or sink, ``decoder`` is TAEHV in place of the VAE's."""
    config = world.config.model_copy(update={"cache": world.config.cache.model_copy(update=cache)})
    modules = world.modules
    if decoder is not None:
        config, modules = config.model_copy(update={"decoder": "taehv"}), {**modules, "decoder": decoder}
    base = {name: value.clone() for name, value in world.modules["denoiser"].named_parameters()}
    world.modules["denoiser"].load_state_dict(world.merged if merged else base)
    try:
        sampler = ReferenceSampler(modules, config, seed=3, size=SIZE)
        return sampler.frames({0: PROMPT, SWITCH: OTHER}, CHUNKS).astype(int)
    finally:
        world.modules["denoiser"].load_state_dict(base)


@pytest.fixture(scope="module")
def frames(outcome):
    """What the package plays past its window, with a new prompt at the end."""
    with Pipeline.open(outcome.package) as pipeline:
        stream = pipeline.stream(PROMPT, seed=3, size=SIZE)
        found = [next(stream) for _ in range(SWITCH)]
        pipeline.prompt = OTHER
        return np.concatenate([*found, next(stream)]).astype(int)


def test_past_the_window_the_frames_are_those_of_base_and_adapter_with_the_sink_in_plain_torch(world, frames):
    expected = reference(world)
    assert frames.shape == expected.shape == (CHUNKS * 12 - 3, *SIZE, 3) and expected.std() > 20
    # A difference in the last bit grows from chunk to chunk, hence the average.
    assert np.abs(frames - expected).mean() < 0.5
    assert np.abs(frames - reference(world, merged=False)).mean() > 5  # the adapter is not a detail


def test_the_sink_is_seen_from_the_chunk_that_would_have_overwritten_it(world, frames):
    without = reference(world, sink=0)
    first = 3 * 12 - 3  # frame of the fourth chunk: with no sink it would take the place of the first
    assert np.abs(frames[:first] - without[:first]).mean() < 0.5
    differences = [np.abs(frames[at : at + 12] - without[at : at + 12]).mean() for at in range(first, len(frames), 12)]
    assert min(differences) > 1


def test_both_files_are_needed_and_the_adapters_bytes_are_in_the_key(world, outcome, tmp_path):
    for file in world.request.weights.rglob("*"):
        if file.is_file() and file.name != "lora.pt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    request = BuildRequest("cpu", world.request.model, "fp32", (), tmp_path, world.request.store)
    with pytest.raises(CheckpointError, match=r"longlive_base\.pt and models/lora\.pt of Efficient-Large-Model"):
        package_key(request)
    content = torch.load(world.request.weights / "longlive_models/models/lora.pt", weights_only=True)
    next(iter(content["generator_lora"].values()))[0, 0] += 1
    torch.save(content, tmp_path / "lora.pt")
    assert package_key(request) != outcome.key


def show(capsys, world, folder):
    assert run(["model", "show", world.request.model, "--weights", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["data"]


def test_model_show_explains_what_is_needed_where_it_goes_and_what_is_found(world, capsys, tmp_path):
    data = show(capsys, world, world.request.weights)
    assert data["missing"] == [] and data["folder"] == str(world.request.weights)
    taken = {(file["piece"], file["path"]): file for file in data["files"] if file["chosen"]}
    base, lora = (taken["denoiser", f"models/{name}"] for name in ("longlive_base.pt", "lora.pt"))
    assert base["beside"] == "models/lora.pt" and lora["beside"] == "models/longlive_base.pt"
    assert base["repository"] == "Efficient-Large-Model/LongLive-1.3B" and base["host"] == "huggingface.co"
    assert not taken["tiny_decoder", "taew2_1.pth"]["needed"] and taken["decoder", "Wan2.1_VAE.pth"]["needed"]
    assert taken["tiny_decoder", "taew2_1.pth"]["host"] == "github.com"

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "longlive_base.pt").write_bytes(b"12345")
    assert show(capsys, world, tmp_path)["missing"] == ["decoder", "denoiser", "text_encoder", "tokenizer"]
    assert run(["model", "show", world.request.model, "--weights", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "5 B, incomplete without models/lora.pt" in text and "- (goes with models/longlive_base.pt)" in text
    assert str(tmp_path / "LongLive-1.3B" / "models" / "longlive_base.pt") in text
    assert "tiny decoder (--decoder taehv)" in text and "missing: decoder, denoiser, text encoder, tokenizer" in text


def test_another_decoder_that_the_model_offers_can_be_asked_for(world, outcome, tmp_path, monkeypatch, capsys):
    request = BuildRequest(**vars(world.request) | {"decoder": "taehv"})
    tiny = build(request, QUIET)
    assert tiny.key != outcome.key
    assert (outcome.manifest.model.decoder, tiny.manifest.model.decoder) == ("vae", "taehv")
    assert package_key(BuildRequest(**vars(world.request) | {"decoder": "vae"})) == outcome.key
    for made in (outcome, tiny):  # what the manifest says is enough to build it again
        assert plan_of(made.manifest, world.request.weights, world.request.store)[0].package_key == made.key
    with Pipeline.open(tiny.package) as pipeline:
        frames = np.concatenate(list(pipeline.stream(PROMPT, seed=3, size=SIZE, frames=21))).astype(int)
    expected = reference(world, decoder=tiny_decoder().half().float())[:21]
    assert expected.std() > 20 and np.abs(frames - expected).mean() < 0.5
    assert np.abs(frames - reference(world)[:21]).mean() > 5

    monkeypatch.chdir(tmp_path)
    for options, made in (([], outcome), (["--decoder", "taehv"], tiny), (["--decoder", "vae"], outcome)):
        line = ["run", "--gpu", "cpu", "--recipe", "fp32", "--model", request.model, "--frames", "1"]
        line += ["--weights", str(request.weights)]
        assert run([*line, "--store", str(request.store), "--no-build", "--prompt", "x", "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["data"]["package"] == str(made.package)


def test_a_decoder_that_the_model_has_no_weights_of_is_refused_with_those_it_has(tiny):
    with pytest.raises(UsageError, match="tiny has no weights of decoder 'taehv'") as refused:
        package_key(tiny.request(decoder="taehv"))
    assert refused.value.hint == "--decoder vae"
    assert package_key(tiny.request(decoder="vae")) == package_key(tiny.request())
