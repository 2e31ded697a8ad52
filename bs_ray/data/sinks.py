"""Pixels -> a file like the one they came from, and the ledger that says what is done.

A shard's images are put first, at keys that depend on nothing but the input; then its line in the
ledger, on condition that there is none. A shard is done when its line is there: a crash before
costs that shard's work and nothing else. The reports are rebuilt from the lines alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bs_ray.data import (
    OUTPUT_SCHEMA,
    EditedRow,
    OutputRow,
    QuarantinedRow,
    is_quarantined,
    quarantined,
)
from bs_ray.data.manifest import Manifest
from bs_ray.storage import Store

SUMMARY_KEY = "summary.json"
_IMAGES, _SHARDS = "images", "_bs_ray/shards"
_EXIF_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"
_TEXT_KEY = "bs_ray"
_REQUESTS = 8  # in flight at once, per task: a shard is mostly waiting for the store


# ---------------------------------------------------------------------------- one image


def encode(row: EditedRow, provenance: dict[str, Any]) -> bytes:
    """The edited photo as a file of the input's format; equal rows give equal bytes.

    JPEG is written at quality 95 without chroma subsampling, one-channel photos as such.
    Provenance goes into EXIF's UserComment, or a PNG's text; a BMP has no room for it.
    """
    if row["source"] is not None:
        return row["source"]
    file = BytesIO()
    options = _OPTIONS[row["format"]](row, provenance)
    if row["icc"]:
        options["icc_profile"] = row["icc"]
    _image(row).save(file, row["format"], **options)
    return file.getvalue()


def read_provenance(data: bytes) -> dict[str, Any] | None:
    """What `encode` wrote into a file, or None where there is nothing of ours."""
    with Image.open(BytesIO(data)) as image:
        text = image.info.get(_TEXT_KEY)
        if text is None:
            comment = image.getexif().get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT, b"")
            text = bytes(comment).removeprefix(_ASCII).decode("ascii", "replace")
    try:
        return json.loads(text)[_TEXT_KEY]
    except (ValueError, KeyError, TypeError):
        return None


def _image(row: EditedRow) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(row["pixels"]))
    if row["grey"]:
        image = image.convert("L")
    if row["alpha"] is not None:
        image.putalpha(Image.fromarray(row["alpha"]))
    return image


def _jpeg_options(row: EditedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    return {"quality": 95, "subsampling": 0, "exif": _with_comment(row["exif"], provenance)}


def _png_options(row: EditedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    text = PngInfo()
    text.add_text(_TEXT_KEY, _json({_TEXT_KEY: provenance}))
    return {"pnginfo": text, **({"exif": row["exif"]} if row["exif"] else {})}


def _webp_options(row: EditedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    quality = {"lossless": True} if row["lossless"] else {"quality": 95}
    return {**quality, "exact": True, "exif": _with_comment(row["exif"], provenance)}


def _tiff_options(row: EditedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    # Uncompressed: libtiff, which would compress, writes no EXIF directories.
    return {"exif": _with_comment(row["exif"], provenance)}


_OPTIONS: dict[str, Callable[[EditedRow, dict[str, Any]], dict[str, Any]]] = {
    "JPEG": _jpeg_options,
    "PNG": _png_options,
    "WEBP": _webp_options,
    "TIFF": _tiff_options,
    "BMP": lambda row, provenance: {},
}


def _with_comment(exif: bytes, provenance: dict[str, Any]) -> bytes:
    """The EXIF block with our UserComment; one that was there before is kept inside it."""
    block = Image.Exif()
    block.load(exif)
    directory = block.get_ifd(_EXIF_DIRECTORY)
    before = bytes(directory.get(_USER_COMMENT, b""))
    comment: dict[str, Any] = {_TEXT_KEY: provenance}
    if before.strip(b"\0 "):
        comment["before"] = before.removeprefix(_ASCII).decode("utf-8", "replace")
    directory[_USER_COMMENT] = _ASCII + _json(comment).encode("ascii")
    return block.tobytes()


# ---------------------------------------------------------------------------- one shard


def commit_shard(
    output: Store,
    shard: int,
    rows: Sequence[EditedRow | QuarantinedRow],
    provenance: Callable[[EditedRow], dict[str, Any]],
) -> list[OutputRow | QuarantinedRow]:
    """Write the shard's images, then its line. Returns the line's rows, in the given order."""

    def put(row: EditedRow | QuarantinedRow) -> OutputRow | QuarantinedRow:
        if is_quarantined(row):
            return row
        return _put(output, row, provenance(row))  # type: ignore[arg-type]

    with ThreadPoolExecutor(_REQUESTS) as pool:
        done = list(pool.map(put, rows))
    line = {"shard": shard, "rows": done}
    output.write_if_absent(_shard_key(shard), _json(line, indent=1).encode())
    return done


def _put(output: Store, row: EditedRow, provenance: dict[str, Any]) -> OutputRow | QuarantinedRow:
    try:
        data = encode(row, provenance)
    except Exception as error:  # such as metadata too long for the format
        return quarantined(row["key"], "encode", f"damaged: {type(error).__name__}: {error}")
    key = f"{_IMAGES}/{row['key']}"
    output.write(key, data)
    return OutputRow(
        key=row["key"],
        sha256=row["sha256"],
        output=key,
        output_sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        note=row["note"],
    )


def done_shards(output: Store) -> set[int]:
    """The shards whose line is written."""
    entries = output.list(_SHARDS + "/")
    return {int(e.key.rpartition("/")[2].removesuffix(".json")) for e in entries}


def read_lines(output: Store, shards: Sequence[int]) -> list[OutputRow | QuarantinedRow]:
    """All rows of some shards, in order."""

    def rows(shard: int) -> list[OutputRow | QuarantinedRow]:
        return json.loads(output.read(_shard_key(shard)))["rows"]

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return [row for line in pool.map(rows, shards) for row in line]


def _shard_key(shard: int) -> str:
    return f"{_SHARDS}/{shard:05d}.json"


# ---------------------------------------------------------------------------- the whole


def write_reports(output: Store, manifest: Manifest) -> dict[str, Any]:
    """Write manifest.parquet, quarantine.jsonl and, last, summary.json; returns the summary.

    Everything follows from the ledger, so equal jobs leave equal reports. Raises RuntimeError
    where inputs and rows do not match one to one.
    """
    rows = read_lines(output, range(manifest.shards))
    if [row["key"] for row in rows] != manifest.keys:
        raise RuntimeError(
            f"{output.uri}: got {len(rows)} rows that do not match the {len(manifest.keys)} inputs "
            "key by key. Something else wrote below _bs_ray; use a fresh output"
        )
    outputs = [row for row in rows if not is_quarantined(row)]
    refused = [row for row in rows if is_quarantined(row)]
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(outputs, schema=OUTPUT_SCHEMA), file, compression="zstd")
    output.write("manifest.parquet", file.getvalue())
    output.write("quarantine.jsonl", "".join(_json(row) + "\n" for row in refused).encode())
    kinds = Counter(f"{row['stage']}: {row['reason'].partition(':')[0]}" for row in refused)
    summary = {
        "inputs": len(rows),
        "outputs": len(outputs),
        "quarantined": len(refused),
        "quarantined_by_reason": dict(sorted(kinds.items())),
        "ignored": manifest.ignored,
        "shards": manifest.shards,
        "input_sha256": manifest.sha256,
        "settings": manifest.settings,
    }
    output.write(SUMMARY_KEY, (_json(summary, indent=2) + "\n").encode())
    return summary


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent)
