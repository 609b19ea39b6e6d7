"""From what a user types to a package: a folder, the start of a key, a GPU, or model/GPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtgen.errors import PackageMissingError, UsageError

if TYPE_CHECKING:
    from rtgen.store.inventory import PackageInfo
    from rtgen.store.store import Store

KEY_SHOWN = 12
"""Characters of a key that people see; any unique start is accepted."""
_KEY_LEAST = 4


def find_package(store: "Store", name: str) -> Path:
    """The package's folder, in the store or anywhere else. Raises PackageMissingError, or UsageError for several."""
    folder = Path(name)
    if (folder / "manifest.json").is_file():
        return folder
    return find_stored(store, name).path


def find_stored(store: "Store", name: str) -> "PackageInfo":
    """The one package of the store that ``name`` means. Raises as :func:`find_package`."""
    packages = store.packages()
    found = [package for package in packages if _means(package, name)]
    if len(found) == 1:
        return found[0]
    if not found:
        hint = "rtgen engine ls shows the packages" if packages else "the store is empty: rtgen build makes a package"
        raise PackageMissingError(f"no package in {store.root} is called '{name}'", hint=hint)
    keys = ", ".join(package.key[:KEY_SHOWN] for package in found)
    raise UsageError(f"'{name}' could be {len(found)} packages", hint=f"give the start of one key: {keys}")


def _means(package: "PackageInfo", name: str) -> bool:
    if len(name) >= _KEY_LEAST and package.key.startswith(name.lower()):
        return True
    return name in (package.gpu, f"{package.model}/{package.gpu}") or _same_folder(package.path, name)


def _same_folder(path: Path, name: str) -> bool:
    """Whether ``name`` is the path of a package, sound or not."""
    return Path(name).name == path.name and Path(name).absolute() == path


def package_data(package: "PackageInfo") -> dict[str, Any]:
    """A package for the JSON object. ``used`` is seconds since the epoch."""
    return {
        "package": str(package.path),
        "model": package.model,
        "gpu": package.gpu,
        "key": package.key,
        "size": package.size,
        "used": round(package.mtime),
        "problem": package.problem,
    }
