"""Sections in JSON files that come with packages and stages: checked before they are believed."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from rtgen.config.base import Section
from rtgen.errors import PackageInvalidError

_Section = TypeVar("_Section", bound=Section)


def read_section(kind: type[_Section], path: Path, maximum: int, complaint: str) -> _Section:
    """The section in a file of at most ``maximum`` bytes.

    Raises PackageInvalidError for a file that cannot be read, is larger, or is something else: then ``complaint``
    follows the path, such as "is no manifest", and what is wrong first.
    """
    try:
        if path.stat().st_size > maximum:
            raise PackageInvalidError(f"{path} is larger than {maximum >> 20} MiB")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PackageInvalidError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PackageInvalidError(f"{path} {complaint}: {where!r}: {first['msg']}") from error
