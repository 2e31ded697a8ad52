"""Rows on their way from a prefix of photos to a prefix of edited ones.

    input list -> ImageRow -> fetch, look -> PlannedRow -> edit -> EditedRows -> OutputRows
                                   |                         |             |
                                   +----- QuarantinedRow ----+-------------+

A photo leaves with all its edits or in quarantine: inputs = edited + quarantined, by key. Between
the stages it is its file and what the base sees of it. Its pixels, which take ten times as much as
the file, never leave the process that decodes them.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from bs_ray.images.regions import Region
from bs_ray.images.rows import QuarantinedRow

LISTING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # names the photo and its outputs
        pa.field(
            "size", pa.int64(), nullable=False
        ),  # bytes; -1: only reading tells, -2: unreadable
        pa.field("etag", pa.string(), nullable=False),  # of the object that holds it; why, for -2
        pa.field("file", pa.string(), nullable=False),  # the packed file that it is in; "" for none
        pa.field("at", pa.int64(), nullable=False),  # where in it: a Parquet row, a byte of a tar
        pa.field("plan", pa.string(), nullable=False),  # its own edits as JSON; "" for the job's
    ]
)
"""The photos below an input prefix, each once."""

INPUT_SCHEMA = LISTING_SCHEMA.append(pa.field("shard", pa.int32(), nullable=False))
"""The input list: ImageRows in order."""

OUTPUT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("edit", pa.string(), nullable=False),  # its name; "" where a job has one edit
        pa.field("sha256", pa.string(), nullable=False),  # of the input's bytes
        pa.field("output", pa.string(), nullable=False),  # key below the output prefix, see sinks
        pa.field("output_sha256", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # size of the edited photo's file
        pa.field("note", pa.string(), nullable=False),  # what could not be kept; "" as a rule
        pa.field("regions", pa.string()),  # JSON: where edited; "" as a whole
    ]
)
"""The manifest: one OutputRow for each edit, in the order of the inputs."""


class ImageRow(TypedDict):
    """One photo of the input list."""

    key: str
    size: int
    etag: str
    file: str
    at: int
    plan: str
    """The photo's own edits as JSON, as its `edits_column` has them; "" for the job's edits. In a
    job with boxes, those of a packed photo too: `boxes.with_boxes`."""
    shard: int


Edits = dict[str, dict[str, float]]
"""Edit's name -> slider's name@version -> signed strength."""


class _Photo(TypedDict):
    """What all stages know of a photo."""

    key: str
    sha256: str
    """Of its file; it names the photo's noise."""
    format: str
    """Of its file's content, by Pillow's name."""
    note: str
    """What of the file cannot be kept, and what else its user should know; "" as a rule."""
    regions: tuple[Region, ...] | None
    """Where it is edited; None stands for the whole photo."""


class PlannedRow(_Photo):
    """A photo, what the base sees of it, and what to make of it."""

    edits: Edits
    views: list[np.ndarray]
    """uint8 [h, w, 3], of each region or of the whole photo; none where nothing is to move."""


class EditedRow(_Photo):
    """One of a photo's edits."""

    edit: str
    """Its name; "" where the photo has one."""
    mix: dict[str, float]
    """Slider's name@version -> signed strength."""
    changes: list[np.ndarray]
    """By what each of the views moves: float16 [h, w, 3] in units of [0, 255]. Where there are
    none, the photo's own file is the output."""


class OutputRow(TypedDict):
    """One edited photo, as written."""

    key: str
    edit: str
    sha256: str
    output: str
    output_sha256: str
    bytes: int
    note: str
    regions: str


def pack(
    shard: int,
    rows: Sequence[PlannedRow | EditedRow | QuarantinedRow],
    files: bytes,
    **seconds: float,
) -> dict[str, Any]:
    """A shard as one row of a Dataset, pickled, since pictures of many sizes fit no Arrow columns.

    files: as `pack_files` gives them; who does not need them hands them on as they are. seconds:
    what the shard's stages took so far, as <stage>_s; edit_at_s is the Unix time of its editing.
    """
    return {"shard": shard, "rows": pickle.dumps(rows, protocol=5), "files": files, **seconds}


def unpack(row: dict[str, Any]) -> list[Any]:
    """The rows that `pack` packed."""
    return pickle.loads(row["rows"])


def pack_files(files: dict[str, bytes]) -> bytes:
    """The files of a shard's photos, by key, as one value."""
    return pickle.dumps(files, protocol=5)


def unpack_files(row: dict[str, Any]) -> dict[str, bytes]:
    """The files that `pack_files` packed."""
    return pickle.loads(row["files"])


def seconds_of(row: dict[str, Any]) -> dict[str, float]:
    """What the stages so far took."""
    return {name: value for name, value in row.items() if name.endswith("_s")}
