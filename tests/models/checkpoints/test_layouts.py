"""Where published files are looked for, and what ``rtgen model show`` says about them."""

import pytest

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.layouts import LONGLIVE, SELF_FORCING, WAN, explain, find_sources


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")


@pytest.mark.parametrize("place", ["", "Wan2.1-T2V-1.3B", "wan_models/Wan2.1-T2V-1.3B", "Wan-AI/Wan2.1-T2V-1.3B"])
def test_files_are_found_as_the_publishers_lay_them_out(tmp_path, place):
    files = {
        "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth", "decoder": "Wan2.1_VAE.pth",
        "tokenizer": "google/umt5-xxl/tokenizer.json", "denoiser": "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    touch(tmp_path / place, *files.values())
    for piece, name in files.items():
        found = find_sources(piece, tmp_path, "wan")
        assert found.path == tmp_path / place / name and found.files == (found.path,) and found.note is None


def test_bare_files_and_diffusers_folders_are_found(tmp_path):
    touch(tmp_path, "tokenizer.json", "self_forcing_dmd.pt", "vae/diffusion_pytorch_model.safetensors")
    assert find_sources("tokenizer", tmp_path).path.name == "tokenizer.json"
    assert find_sources("denoiser", tmp_path).candidate.repository == SELF_FORCING
    assert find_sources("decoder", tmp_path).path == tmp_path / "vae"


def test_self_forcing_comes_before_the_base_it_was_made_from(tmp_path):
    touch(tmp_path, "diffusion_pytorch_model.safetensors")
    assert "make poor video" in find_sources("denoiser", tmp_path).note
    touch(tmp_path, "checkpoints/self_forcing_dmd.pt")
    assert find_sources("denoiser", tmp_path).path.name == "self_forcing_dmd.pt"


def test_longlive_needs_both_its_files(tmp_path):
    touch(tmp_path, "longlive_models/models/longlive_base.pt")
    with pytest.raises(CheckpointError, match=rf"no denoiser in .*models/lora\.pt of {LONGLIVE}") as caught:
        find_sources("denoiser", tmp_path, "longlive")
    assert "rtgen model show" in caught.value.hint
    touch(tmp_path, "longlive_models/models/lora.pt")
    found = find_sources("denoiser", tmp_path, "longlive")
    assert [file.name for file in found.files] == ["longlive_base.pt", "lora.pt"]


def test_every_file_is_explained(tmp_path):
    assert not any(row.found or row.chosen or row.bytes for row in explain(None))
    touch(tmp_path, "Wan2.1_VAE.pth", "vae/a.safetensors", "models/longlive_base.pt")
    rows = {(row.piece, row.path): row for row in explain(tmp_path, "longlive")}
    assert {piece for piece, _ in rows} == {"text_encoder", "denoiser", "decoder", "tiny_decoder", "tokenizer"}
    vae = rows["decoder", "Wan2.1_VAE.pth"]
    assert (vae.repository, vae.bytes, vae.chosen) == (WAN, 5, True)
    assert rows["decoder", "vae/"].found == tmp_path / "vae" and not rows["decoder", "vae/"].chosen
    assert rows["denoiser", "models/longlive_base.pt"].found and not rows["denoiser", "models/longlive_base.pt"].chosen
    assert rows["denoiser", "models/lora.pt"].found is None
