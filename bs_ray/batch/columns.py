"""The pictures of a Parquet file's column: which columns hold some, and how a cell's are read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from bs_ray.images.base64_text import base64_bytes

_EXPECTED = (
    "image files: bytes, base64 text, Hugging Face's struct with `bytes`, or a list of one of them"
)


def check_picture_type(kind: pa.DataType, column: str) -> None:
    """Raise ValueError unless cells of this type can hold image files."""
    if reason := _refusal(kind):
        raise ValueError(f"column {column!r}: got {reason}; expected {_EXPECTED}")


def _refusal(kind: pa.DataType) -> str:
    """Why no cell of this type is an image file; "" where one may be."""
    if isinstance(kind, pa.BaseExtensionType):
        return f"{kind.extension_name}, which is not an image file"
    if pa.types.is_dictionary(kind):
        return _refusal(kind.value_type)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return "" if "bytes" in names else f"a struct of {', '.join(names)}"
    if _is_list(kind):
        inner = kind.value_type
        if pa.types.is_integer(inner) or pa.types.is_floating(inner) or _is_list(inner):
            return f"pixels ({kind}), which are not an image file; write them as PNG, say"
        return _refusal(inner)
    return "" if _is_binary(kind) or _is_text(kind) else str(kind)


def picture_in(cell: Any) -> bytes | str:
    """The image file in a cell, or the reason why there is none."""
    if isinstance(cell, list):
        if len(cell) != 1:
            return f"several: its row holds {len(cell)} pictures; expected one"
        return picture_in(cell[0])
    if isinstance(cell, dict):
        path = cell.get("path")
        if cell.get("bytes") is None and path:
            return f"missing: its row holds the path {str(path)[:100]!r} instead of the picture"
        return picture_in(cell.get("bytes"))
    if cell is None:
        return "missing: its row holds no image"
    if isinstance(cell, str):
        return _from_text(cell)
    return cell if isinstance(cell, bytes) else f"wrong: its row holds {type(cell).__name__}"


def _from_text(text: str) -> bytes | str:
    try:
        return base64_bytes(text)
    except ValueError:
        return f"wrong: its row holds the text {text[:60]!r}; expected an image in base64"


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
