"""Where shipped data and the user's overrides are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rtgen.config import locate
from rtgen.errors import ConfigError, MissingDependencyError, UsageError


def test_source_tree_uses_the_folders_beside_the_package() -> None:
    root = Path(__file__).parents[2]
    assert locate.data_directory("configs") == root / "configs"
    assert locate.data_directory("plugins") == root / "plugins"


def test_wheel_uses_the_data_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "rtgen"
    inside, unrelated = package / "_data" / "configs", tmp_path / "site-packages" / "configs"
    inside.mkdir(parents=True)
    unrelated.mkdir()
    monkeypatch.setattr(locate, "_PACKAGE", package)
    assert locate.data_directory("configs") == inside


def test_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_PACKAGE", tmp_path / "rtgen")
    with pytest.raises(MissingDependencyError, match="lacks its 'plugins' folder"):
        locate.data_directory("plugins")


@pytest.mark.parametrize("name", ["..", "../configs", "/etc", "C:\\x", "a/b", "a\\b", "", ".hidden", "x\n", "x\0", "é"])
def test_bundled_directory_refuses_paths(name: str) -> None:
    with pytest.raises(UsageError):
        locate.bundled_directory(name)


def test_bundled_directory_is_inside_the_package() -> None:
    assert locate.bundled_directory("wan2.1-1.3b") == Path(locate.__file__).parents[1] / "bundled" / "wan2.1-1.3b"


def test_user_folders_come_first_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder / "gpus").mkdir(parents=True)
        (tmp_path / folder / "gpus" / "shared.toml").touch()
    (tmp_path / "second" / "gpus" / "rtx4090.toml").touch()
    monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join(["", str(tmp_path / "first"), str(tmp_path / "second")]))
    files = locate.config_files("gpus")
    assert files["shared"] == tmp_path / "first" / "gpus" / "shared.toml"
    assert files["rtx4090"] == tmp_path / "second" / "gpus" / "rtx4090.toml"
    assert files["cpu"] == locate.data_directory("configs") / "gpus" / "cpu.toml"
    assert list(files) == sorted(files)


def test_missing_user_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTGEN_CONFIGS", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="absent"):
        locate.config_files("gpus")


def test_listing_does_not_import_pydantic() -> None:
    program = (
        "import sys; sys.modules['rtgen'] = type(sys)('rtgen'); sys.modules['rtgen'].__path__ = [sys.argv[1]];"
        "from rtgen.config import load; load.list_gpus(); sys.exit('pydantic' in sys.modules)"
    )
    package = Path(locate.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(package)], check=True)
