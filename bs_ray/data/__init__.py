"""Rows on their way from a prefix of photos to a prefix of edited ones. No models here.

    manifest -> ImageRow -> fetch, decode -> PlannedRow -> (editing) -> EditedRows -> OutputRows
                                   |                           |              |
                                   +------ QuarantinedRow -----+--------------+

A photo leaves with all its edits or in quarantine: inputs = edited + quarantined, by key.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
from typing_extensions import TypeIs

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

PHOTO_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # Name_Name/Name_Name_0001.jpg
        pa.field("identity", pa.string(), nullable=False),  # Name_Name
        pa.field("bytes", pa.binary(), nullable=False),  # the image file
    ]
)
"""Shards of training photos (`bs-ray ingest`)."""


Stage = Literal["plan", "fetch", "decode", "edit", "encode"]
"""Where a photo can be given up."""


class ImageRow(TypedDict):
    """One photo of the input manifest."""

    key: str
    size: int
    etag: str
    file: str
    at: int
    plan: str
    shard: int


class DecodedRow(TypedDict):
    """A photo as pixels, upright, with what it takes to write it back the way it came."""

    key: str
    sha256: str
    """Of the input's bytes; names the photo's noise."""
    pixels: np.ndarray
    """uint8 RGB [H, W, 3]."""
    alpha: np.ndarray | None
    """uint8 [H, W] where the photo has transparency; it goes back on unchanged."""
    grey: bool
    """A one-channel photo; it is written as one again."""
    format: Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF"]
    """Of the content, whatever the key's suffix says."""
    lossless: bool
    """Whether the photo's own coding is lossless."""
    exif: bytes
    """Without orientation (the pixels are upright) and thumbnail (it would show the old face)."""
    icc: bytes
    """Colour profile of the pixels, b"" for none."""
    source: bytes | None
    """The input's bytes where they are to be copied instead of edited."""
    note: str
    """What could not be kept; "" as a rule."""


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


class QuarantinedRow(TypedDict):
    """A photo that was not edited, and why."""

    key: str
    stage: Stage
    reason: str
    """`kind: details`; kinds are counted in the summary."""


class EmptyInputError(ValueError):
    """A prefix without photos; the message says what was looked for."""


def quarantined(key: str, stage: Stage, reason: str) -> QuarantinedRow:
    """The row that stands for a photo from here on."""
    return {"key": key, "stage": stage, "reason": reason}


def is_quarantined(row: Any) -> TypeIs[QuarantinedRow]:
    """Whether a row of any stage is a QuarantinedRow."""
    return isinstance(row, dict) and "stage" in row
