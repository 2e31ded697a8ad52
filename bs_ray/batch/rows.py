"""Rows on their way from a prefix of photos to a prefix of edited ones. No models here.

    manifest -> ImageRow -> fetch, decode -> PlannedRow -> (editing) -> EditedRows -> OutputRows
                                   |                           |              |
                                   +------ QuarantinedRow -----+--------------+

A photo leaves with all its edits or in quarantine: inputs = edited + quarantined, by key.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, TypedDict

import pyarrow as pa

from bs_ray.images.rows import DecodedRow, QuarantinedRow

LISTING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # names the photo and its outputs
        pa.field("size", pa.int64(), nullable=False),  # bytes; -1 where only reading it tells
        pa.field("etag", pa.string(), nullable=False),  # of the object that holds it
        pa.field("file", pa.string(), nullable=False),  # the packed file it is in; "" for none
        pa.field("at", pa.int64(), nullable=False),  # there: a Parquet row, or a byte of a tar
        pa.field("plan", pa.string(), nullable=False),  # its own edits as JSON; "" for the job's
    ]
)
"""The photos below an input prefix, each once."""

INPUT_SCHEMA = LISTING_SCHEMA.append(pa.field("shard", pa.int32(), nullable=False))
"""The input manifest: ImageRows in order."""

OUTPUT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("edit", pa.string(), nullable=False),  # its name; "" where a job has one
        pa.field("sha256", pa.string(), nullable=False),  # of the input's bytes
        pa.field("output", pa.string(), nullable=False),  # key below the output prefix, see sinks
        pa.field("output_sha256", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # size of the edited photo's file
        pa.field("note", pa.string(), nullable=False),  # what could not be kept; "" as a rule
    ]
)
"""The output manifest: one OutputRow per edit, in the order of the inputs."""


class ImageRow(TypedDict):
    """One photo of the input manifest."""

    key: str
    size: int
    etag: str
    file: str
    at: int
    plan: str
    shard: int


class PlannedRow(DecodedRow):
    """A photo and what to make of it."""

    edits: dict[str, dict[str, float]]
    """Edit's name -> slider -> signed strength."""


class EditedRow(DecodedRow):
    """The same with edited pixels: one of the photo's edits."""

    edit: str
    mix: dict[str, float]


class OutputRow(TypedDict):
    """One edited photo, as written."""

    key: str
    edit: str
    sha256: str
    output: str
    output_sha256: str
    bytes: int
    note: str


Edits = dict[str, dict[str, float]]
"""Edit's name -> slider -> signed strength."""


def pack(
    shard: int, rows: Sequence[PlannedRow | EditedRow | QuarantinedRow], **seconds: float
) -> dict[str, Any]:
    """A shard as one row of a Dataset: photos of many sizes are no Arrow columns.

    seconds: what its stages took so far, as <stage>_s; edit_at_s is the Unix time of its editing.
    """
    return {"shard": shard, "rows": pickle.dumps(rows, protocol=5), **seconds}


def unpack(row: dict[str, Any]) -> list[Any]:
    """The rows that `pack` packed."""
    return pickle.loads(row["rows"])


def seconds_of(row: dict[str, Any]) -> dict[str, float]:
    """What the stages so far took."""
    return {name: value for name, value in row.items() if name.endswith("_s")}
