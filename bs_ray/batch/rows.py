"""Rows on their way from a prefix of photos to a prefix of edited ones.

    input list -> ImageRow -> fetch, decode -> PlannedRow -> edit -> EditedRows -> OutputRows
                                   |                          |             |
                                   +------ QuarantinedRow ----+-------------+

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
    """The photo's own edits as JSON, as its `edits_column` has them; "" for the job's edits."""
    shard: int


Edits = dict[str, dict[str, float]]
"""Edit's name -> slider's name@version -> signed strength."""


class PlannedRow(DecodedRow):
    """A photo and what to make of it."""

    edits: Edits


class EditedRow(DecodedRow):
    """A photo with the pixels of one of its edits."""

    edit: str
    """The edit's name; "" where the photo has one."""
    mix: dict[str, float]
    """Slider's name@version -> signed strength."""
    regions: list[dict[str, float]]
    """Where it was edited, as `Region.described` says; empty where as a whole."""


class OutputRow(TypedDict):
    """One edited photo, as written."""

    key: str
    edit: str
    sha256: str
    output: str
    output_sha256: str
    bytes: int
    note: str


def pack(
    shard: int, rows: Sequence[PlannedRow | EditedRow | QuarantinedRow], **seconds: float
) -> dict[str, Any]:
    """A shard as one row of a Dataset, pickled, since photos of many sizes fit no Arrow columns.

    seconds: what its stages took so far, as <stage>_s; edit_at_s is the Unix time of its editing.
    """
    return {"shard": shard, "rows": pickle.dumps(rows, protocol=5), **seconds}


def unpack(row: dict[str, Any]) -> list[Any]:
    """The rows that `pack` packed."""
    return pickle.loads(row["rows"])


def seconds_of(row: dict[str, Any]) -> dict[str, float]:
    """What the stages so far took."""
    return {name: value for name, value in row.items() if name.endswith("_s")}
