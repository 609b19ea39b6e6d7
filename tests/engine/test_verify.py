import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("polygraphy")

from rtgen.build.verify import VerifyReport, compare_package, compare_with_onnxruntime
from rtgen.engine.manifest import Manifest
from rtgen.engine.package import open_package, read_manifest, write_manifest
from rtgen.errors import MissingDependencyError, NoGpuError, PackageMismatchError
from rtgen.progress import SilentProgress


def verify(package: Path, model: Any, weights: Path | None = None) -> VerifyReport:
    return compare_with_onnxruntime(package, SilentProgress(), weights=weights or model.weights, store=model.store)


def failed(report: VerifyReport) -> set[str]:
    return {row.component for row in report.rows if not row.passed}


@pytest.fixture
def package(tiny: Any, tiny_built: Any, tmp_path: Path) -> Path:
    """A copy of the tiny model's package that a test may change."""
    return Path(shutil.copytree(tiny_built("tiny").package, tmp_path / "package"))


def rewrite(package: Path, **fields: object) -> None:
    write_manifest(package, read_manifest(package).model_copy(update=fields))


def blank_second_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


@pytest.mark.parametrize("name", ["tiny", "tiny-wan"])
def test_a_package_agrees_with_its_graphs_in_every_output_and_state(
    name: str, tiny: Any, tiny_models: Any, tiny_built: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    built = tiny_built(name)
    capfd.readouterr()
    report = verify(built.package, tiny_models[name])
    assert report.passed
    manifest: Manifest = built.manifest
    tensors = [(name, tensor.name) for name, component in manifest.components.items() for tensor in component.outputs]
    assert sorted((row.component, row.tensor) for row in report.rows) == sorted(tensors)
    assert [row.component for row in report.rows if row.tensor in ("context", "denoised", "frames")] == [
        "text_encoder", "denoiser", "decoder",
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "")


def test_a_package_with_changed_weights_differs(tiny: Any, package: Path) -> None:
    blank_second_half(package / "denoiser.1.safetensors")
    rewrite(package)
    assert failed(verify(package, tiny)) == {"denoiser"}


def test_a_backend_that_loses_its_states_differs(tiny: Any, tiny_built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtgen.runtime.backends.onnxruntime import OnnxRuntimeSession

    run = OnnxRuntimeSession.run

    def forgetful_run(self: OnnxRuntimeSession) -> None:
        self.reset()
        run(self)

    monkeypatch.setattr(OnnxRuntimeSession, "run", forgetful_run)
    report = verify(tiny_built("tiny").package, tiny)
    assert failed(report) == {"denoiser", "decoder"}
    assert not next(row for row in report.rows if row.tensor == "denoised").passed


@pytest.mark.slow
def test_half_precision_graphs_with_a_fixed_ring_agree(tiny: Any, package: Path) -> None:
    """The graphs that TensorRT gets, in a package for ONNX Runtime: their engines run only where the GPU is.

    The plugin's body is the one for every compiler: ONNX Runtime does not broadcast a mask over queries.
    """
    from rtgen.build.graphs import read_tables
    from rtgen.build.reference import standard
    from rtgen.build.walk import export

    graphs = export(tiny.request("rtx4080-laptop"), SilentProgress())
    tables = read_tables(graphs)
    for table in tables.values():
        (package / table.file).write_bytes(standard(graphs / table.file))
    # A ring of fixed length is as long as the greatest size needs.
    model = read_manifest(package).model
    rewrite(package, components=tables, model=model.model_copy(update={"default_size": (64, 64)}))
    report = compare_package(open_package(package), graphs, tiny.weights, SilentProgress())
    assert report.passed
    assert max(row.max_rel for row in report.rows if row.component == "denoiser") > 1e-6


def test_weights_other_than_the_packages_are_refused(tiny: Any, tiny_built: Any, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(tiny.weights, tmp_path / "weights"))
    blank_second_half(weights / "decoder.0.safetensors")
    with pytest.raises(PackageMismatchError, match="other weights") as caught:
        verify(tiny_built("tiny").package, tiny, weights)
    assert "--weights" in (caught.value.hint or "")


def test_a_package_that_this_version_would_not_build_is_refused(tiny: Any, package: Path) -> None:
    rewrite(package, key="0" * 64)
    with pytest.raises(PackageMismatchError, match="another version") as caught:
        verify(package, tiny)
    assert "rtgen build --gpu cpu --model tiny" in (caught.value.hint or "")


def test_a_package_for_a_gpu_needs_one(tiny: Any, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtgen.runtime.select.detect_gpus", lambda: [])
    target = read_manifest(package).target
    rewrite(package, target=target.model_copy(update={"gpu": "rtx4080-laptop", "compute_capability": "8.9"}))
    with pytest.raises(NoGpuError):
        verify(package, tiny)


def test_without_polygraphy_the_extra_is_named(package: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.comparator", None)
    with pytest.raises(MissingDependencyError) as caught:
        verify(package, tiny)
    assert caught.value.hint == 'pip install "rtgen[compile]"'
