"""How much room a disk has."""

import shutil
from pathlib import Path


def existing_folder(folder: Path) -> Path:
    """``folder``, or the nearest of its parents that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())


def free_space(folder: Path) -> int:
    """Free bytes of the disk that ``folder`` is, or would be, on."""
    return shutil.disk_usage(existing_folder(folder)).free
