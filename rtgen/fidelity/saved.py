"""The report in a folder: ``report.json`` for programs, ``index.html`` for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.errors import OutputError
from rtgen.fidelity.page import page
from rtgen.store.atomic import write_bytes, write_json

if TYPE_CHECKING:
    from rtgen.fidelity.studio import FinishedReport

DATA: Final = "report.json"
PAGE: Final = "index.html"


@dataclass(frozen=True)
class SavedReport:
    """Where the files are."""

    data: Path
    page: Path


def prepare_folder(folder: Path) -> None:
    """Make the folder, before the work of a report begins. Raises OutputError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of that name" if folder.exists() else error.strerror or str(error)
        raise OutputError(f"the report cannot be written to {folder}: {reason}", hint="name another folder") from error


def save_report(finished: FinishedReport, folder: Path) -> SavedReport:
    """Write both files, each whole or not at all; those of an earlier report are replaced. Raises OutputError."""
    saved = SavedReport(folder / DATA, folder / PAGE)
    try:
        write_json(saved.data, finished.report.model_dump(mode="json"))
        write_bytes(saved.page, page(finished.report, finished.pictures).encode("utf-8"))
    except OSError as error:
        raise OutputError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
    return saved
