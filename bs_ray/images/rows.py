"""What becomes of an image file: a DecodedRow, or a QuarantinedRow that says why not."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import numpy as np
from typing_extensions import TypeIs

Stage = Literal["plan", "fetch", "decode", "edit", "encode"]
"""Where a photo can be given up; "plan" stands for edits of its own that cannot be understood."""


class JpegCoding(TypedDict):
    """How a JPEG is compressed, so that another one can be compressed alike."""

    tables: list[list[int]]
    """The quantisation tables, 64 numbers each."""
    subsampling: int
    """Of its colours: 0 is none (4:4:4), 1 is 4:2:2, 2 is 4:2:0."""
    progressive: bool


class SideData(TypedDict):
    """What a file says beside its pixels, EXIF and colour profile."""

    xmp: bytes
    iptc: bytes
    comment: bytes
    """Of a JPEG; of a PNG, what an earlier edit wrote of its making."""
    dpi: tuple[float, float] | None
    """Pixels an inch, across and down."""
    chunks: list[tuple[bytes, bytes]]
    """Of a PNG: (type, data) of texts and of what says which colours its numbers are."""
    jpeg: JpegCoding | None


NO_SIDE_DATA: SideData = {
    "xmp": b"",
    "iptc": b"",
    "comment": b"",
    "dpi": None,
    "chunks": [],
    "jpeg": None,
}


class DecodedRow(TypedDict):
    """A photo as pixels, upright, with everything that is needed to write it in its own format."""

    key: str
    sha256: str
    """Of the input's bytes; it names the photo's noise."""
    pixels: np.ndarray
    """uint8 RGB [H, W, 3]."""
    alpha: np.ndarray | None
    """uint8 [H, W] where the photo has transparency, which is written back unchanged."""
    deep: np.ndarray | None
    """uint16 [H, W, C], the photo's own channels, where it has 16 bits for each and its format can
    be written so."""
    grey: bool
    """Whether the photo has one channel; it is then written with one again."""
    format: Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF"]
    """Of the content, whatever the key's suffix says."""
    lossless: bool
    """Whether the photo's own coding is lossless."""
    exif: bytes
    """Without the orientation, since the pixels are upright, and without the thumbnail, which would
    show the face before the edit."""
    icc: bytes
    """Colour profile of the pixels; b"" where there is none."""
    side: SideData
    source: bytes | None
    """The input's bytes where the output is to be a copy of them."""
    note: str
    """What of the file could not be kept; "" as a rule."""


class QuarantinedRow(TypedDict):
    """A photo that was not edited, and why."""

    key: str
    stage: Stage
    reason: str
    """`kind: details`; the summary counts the kinds."""


def quarantined(key: str, stage: Stage, reason: str) -> QuarantinedRow:
    """The row that stands for a photo from here on."""
    return {"key": key, "stage": stage, "reason": reason}


def is_quarantined(row: Any) -> TypeIs[QuarantinedRow]:
    """Whether a row, of whatever stage, is a QuarantinedRow."""
    return isinstance(row, dict) and "stage" in row
