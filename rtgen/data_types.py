"""Element types of tensors, by the names that manifests and plugins use."""

from collections.abc import Mapping
from typing import Literal

DataType = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]

ITEM_SIZES: Mapping[str, int] = {
    "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of an element."""

TENSORRT_TYPES: Mapping[DataType, str] = {
    "float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "int8": "INT8", "uint8": "UINT8",
    "bool": "BOOL",
}  # fmt: skip
"""TensorRT's name of each, a member of its ``DataType``."""
