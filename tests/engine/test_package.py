"""Packages open only when they are exactly what was written."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtgen.engine.manifest import Manifest
from rtgen.engine.package import MANIFEST_LIMIT, member_path, open_package, read_manifest, verify, write_manifest
from rtgen.errors import PackageInvalidError

FILES = {
    "denoiser.engine": b"denoiser weights",
    "decoder.onnx": b"decoder graph",
    "decoder.bin": b"decoder weights",
    "kernels/attention.cubin": b"cubin",
    "tokenizer.json": b"{}",
}


def make_package(folder: Path) -> Manifest:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return write_manifest(folder, Manifest.model_validate(manifest_fields()))


def manifest_fields() -> dict:
    size = (64, 64)
    tensor = {"name": "latents", "dtype": "float16", "shape": [1, "12*rows*columns"]}
    component = {"inputs": [tensor], "outputs": [tensor]}
    return {
        "key": "a" * 64,
        "rtgen": "0.1.0",
        "model": {
            "name": "toy", "digest": "b" * 64, "frames_per_second": 16, "example_prompts": ["a pond"],
            "default_size": size, "size_step": (16, 16), "latent_channels": 16, "spatial_stride": 8,
            "temporal_stride": 4,
            "decoder": "vae", "dropped_frames": 0, "chunk": 3, "window": 9, "sink": 3, "position_limit": 1024,
            "sigmas": [1.0, 0.9375, 0.1], "sampler": "euler",
            "rope_split": (22, 21, 21), "rope_theta": 1e4, "prompt_tokens": 32, "tokenizer": "tokenizer.json",
        },
        "target": {"gpu": "toy-gpu", "compute_capability": "8.9", "vram_bytes": 1 << 30},
        "recipe": "fp16",
        "compiler": {"name": "tensorrt_rtx", "version": "1.7.1"},
        "profiles": [{"min": size, "opt": size, "max": size}],
        "components": {
            "denoiser": {"file": "denoiser.engine", **component},
            "decoder": {"file": "decoder.onnx", "weights": ["decoder.bin"], **component},
        },
        "memory_plan": dict.fromkeys(
            ("weights", "activations", "kv_ring", "decoder_state", "io", "context", "vram"), 1024
        ),
        "files": {},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy" / "toy-gpu" / ("a" * 64)
    make_package(path)
    return path


def edit_manifest(folder: Path, **changes: object) -> None:
    """Replace fields and renew the digest, as somebody who crafts a package would."""
    data = json.loads((folder / "manifest.json").read_text()) | changes
    data.pop("manifest_sha256")
    body = (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
    data["manifest_sha256"] = hashlib.sha256(body).hexdigest()
    (folder / "manifest.json").write_bytes((json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def refuse(folder: Path, words: str) -> None:
    with pytest.raises(PackageInvalidError, match=words) as refused:
        verify(folder)
    assert "\n" not in refused.value.message
    assert refused.value.hint is not None
    assert "rtgen build" in refused.value.hint


def test_a_package_opens_with_the_manifest_it_was_written_with(folder: Path) -> None:
    package = open_package(folder)
    assert package.manifest.files.keys() == FILES.keys()
    assert package.file("kernels/attention.cubin").read_bytes() == b"cubin"
    assert package.manifest.model.sigmas == (1.0, 0.9375, 0.1)
    with pytest.raises(PackageInvalidError):
        package.file("manifest.json")


def test_the_same_content_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_package(tmp_path / "again")
    assert (folder / "manifest.json").read_bytes() == (tmp_path / "again" / "manifest.json").read_bytes()


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found(folder: Path, data: st.DataObject) -> None:
    file = folder / data.draw(st.sampled_from([*FILES, *["manifest.json"] * 5]))
    original = file.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != original[position]))
    file.write_bytes(original[:position] + bytes([value]) + original[position + 1 :])
    try:
        with pytest.raises(PackageInvalidError):
            open_package(folder)
    finally:
        file.write_bytes(original)


@given(content=st.binary(max_size=200) | st.text(max_size=50).map(lambda text: json.dumps([text]).encode()))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_manifest_is_refused_and_never_crashes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(PackageInvalidError):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"schema_version": "rtgen.package/1", "sigma": NaN}',
        b'{"schema_version": "rtgen.package/1", "n": ' + b"9" * 5000 + b"}",
        b'{"schema_version": ["rtgen.package/1"]}',
        b"\xff\xfe{\x00}\x00",
        b"null",
        b"",
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(PackageInvalidError):
        read_manifest(tmp_path)


def test_truncated_grown_missing_and_surplus_files_are_named(folder: Path) -> None:
    engine = folder / "denoiser.engine"
    engine.write_bytes(FILES["denoiser.engine"][:5])
    refuse(folder, r"'denoiser.engine' is truncated: it has 5 of 16 bytes")
    engine.write_bytes(FILES["denoiser.engine"] + b"!")
    refuse(folder, r"'denoiser.engine' was changed: it has 17 bytes instead of 16")
    engine.write_bytes(FILES["denoiser.engine"].upper())
    refuse(folder, r"'denoiser.engine' was changed: its sha256")
    engine.unlink()
    refuse(folder, r"'denoiser.engine' is missing")
    engine.write_bytes(FILES["denoiser.engine"])
    (folder / "evil\nname" if Path("/").exists() else folder / "evil").write_bytes(b"")
    refuse(folder, r"does not belong to the package")


def test_a_missing_or_huge_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "there is no manifest.json")
    refuse(folder / "denoiser.engine", "there is no manifest.json")
    (folder / "manifest.json").write_bytes(b" " * (MANIFEST_LIMIT + 1))
    refuse(folder, "larger than")


def test_another_version_of_the_format_is_named(folder: Path) -> None:
    edit_manifest(folder, schema_version="rtgen.package/2")
    refuse(folder, r"format 'rtgen.package/2', and this rtgen reads 'rtgen.package/1'")
    edit_manifest(folder, schema_version="something/1")
    refuse(folder, "not the manifest of an engine package")


def test_a_well_signed_manifest_is_still_held_to_the_schema(folder: Path) -> None:
    edit_manifest(folder, surprise=1)
    refuse(folder, "'surprise'")


@pytest.mark.parametrize("sigmas", [[], [1.0, 1.0], [1.0, 0.5, 0.7], [1.0, 0.0], [1.5, 0.5], [1.0, -1.0]], ids=str)
def test_noise_levels_that_do_not_descend_from_1_to_above_0_are_refused(folder: Path, sigmas: list[float]) -> None:
    edit_manifest(folder, model=manifest_fields()["model"] | {"sigmas": sigmas})
    refuse(folder, "'model.sigmas'")


ESCAPES = ["../secret", "/etc/passwd", "kernels/../../secret", "C:secret", "..\\secret", "\\\\host\\share", "kernels/"]
DEVICES = ["nul", "NUL.txt", "kernels/con.cubin", "aux", "Com1.engine"]
ODD_NAMES = ["trailing.", ".hidden", "", "a\0b", "a\n", "manifest.json/"]


@pytest.mark.parametrize("name", [*ESCAPES, *DEVICES, *ODD_NAMES])
def test_no_name_leaves_the_folder_or_reaches_a_device(folder: Path, name: str) -> None:
    with pytest.raises(PackageInvalidError):
        member_path(folder, name)
    (folder.parent / "secret").write_bytes(b"secret")
    entry = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files={**files, name: entry})
    with pytest.raises(PackageInvalidError):
        read_manifest(folder)


def test_names_that_are_one_file_on_windows_are_refused(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files={**files, "Denoiser.engine": files["denoiser.engine"]})
    refuse(folder, "differ only in case")


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    engine = folder / "denoiser.engine"
    engine.rename(tmp_path / "elsewhere")
    try:
        engine.symlink_to(tmp_path / "elsewhere")
    except OSError:
        pytest.skip("links need a privilege here")
    refuse(folder, "'denoiser.engine' is a link")
    engine.unlink()
    (tmp_path / "elsewhere").rename(engine)
    verify(folder)
    (folder / "kernels").rename(tmp_path / "kernels")
    (folder / "kernels").symlink_to(tmp_path / "kernels", target_is_directory=True)
    refuse(folder, "'kernels' is a link")


def test_a_component_must_have_its_files(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "decoder.bin").unlink()
    with pytest.raises(PackageInvalidError, match=r"'decoder.bin' is used"):
        write_manifest(folder, manifest)


def test_progress_reaches_the_end(folder: Path) -> None:
    class Recorder:
        fractions: list[float] = []  # noqa: RUF012

        def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
            self.fractions.append(fraction or 0.0)

        def note(self, message: str) -> None:
            pass

    verify(folder, progress=Recorder())
    assert Recorder.fractions == sorted(Recorder.fractions)
    assert Recorder.fractions[-1] == 1.0
