"""Text for people: aligned columns, bytes, nested settings. No colour, so that it reads the same in a pipe."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns two spaces apart under upper-case headers; no trailing blanks."""
    table = [[header.upper() for header in headers], *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def pairs(values: Mapping[str, str], indent: str = "") -> list[str]:
    """One ``name  value`` line each, values aligned."""
    width = max((len(name) for name in values), default=0)
    return [f"{indent}{name.ljust(width)}  {value}".rstrip() for name, value in values.items()]


def settings(data: Mapping[str, Any]) -> list[str]:
    """Nested settings as aligned ``dotted.name  value`` lines."""
    return pairs(dict(_flatten("", data)))


def _flatten(prefix: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{name}.", value)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for index, item in enumerate(value):
                yield from _flatten(f"{prefix}{name}.{index}.", item)
        else:
            yield prefix + name, _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(_scalar(item) for item in value)
    return str(value)


def bytes_text(count: float) -> str:
    """A size such as ``782 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def size_text(size: Sequence[int]) -> str:
    """Height and width in pixels as the command line takes them, such as ``128x128``."""
    return f"{size[0]}x{size[1]}"
