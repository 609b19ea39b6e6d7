"""The form of a stage: any files, and ``stage.json`` with the size and sha256 of each."""

from pathlib import Path
from typing import Literal

from rtgen.engine.manifest import Entry, FileEntry
from rtgen.engine.package import list_files
from rtgen.store.atomic import write_json
from rtgen.store.keys import file_digest

STAGE_FILE = "stage.json"
_LIMIT = 4 << 20


class StageRecord(Entry):
    """The whole of ``stage.json``."""

    schema_version: Literal["rtgen.stage/1"] = "rtgen.stage/1"
    files: dict[str, FileEntry]
    """Every file of the stage but this one, by relative POSIX path."""


def seal_stage(folder: Path) -> None:
    """Write ``stage.json`` for the files in ``folder``. Raises ValueError when one is a link, OSError."""
    files = {}
    for name, size in list_files(folder).items():
        if size is None:
            raise ValueError(f"a stage holds plain files only, and '{name}' is a link or a special file")
        if name != STAGE_FILE:
            files[name] = FileEntry(size=size, sha256=file_digest(folder / name))
    write_json(folder / STAGE_FILE, StageRecord(files=files).model_dump(mode="json"))


def stage_problem(folder: Path, *, hashes: bool = False) -> str | None:
    """What is wrong with a stage, None if nothing. Names and sizes are compared, and with ``hashes`` contents too."""
    try:
        found = list_files(folder)
        if found.pop(STAGE_FILE, None) is None:
            return f"there is no {STAGE_FILE}"
        with (folder / STAGE_FILE).open("rb") as file:
            listed = StageRecord.model_validate_json(file.read(_LIMIT)).files
        # Files are taken from the folder and looked up in the record, so a path in stage.json is never followed.
        for name in sorted(found.keys() | listed.keys()):
            if name not in listed:
                return f"{name!r} does not belong to the stage"
            if found.get(name) != listed[name].size:
                return f"{name!r} has {found.get(name) or 0} of {listed[name].size} bytes"
            if hashes and file_digest(folder / name) != listed[name].sha256:
                return f"{name!r} was changed"
    except OSError as error:
        return f"it cannot be read: {error}"
    except ValueError:  # also pydantic's ValidationError, whose text has many lines
        return f"{STAGE_FILE} is not valid"
    return None
