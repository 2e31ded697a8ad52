"""What becomes of an image file: a DecodedRow, or a QuarantinedRow that says why not."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import numpy as np
from typing_extensions import TypeIs

Stage = Literal["plan", "fetch", "decode", "edit", "encode"]
"""Where a photo can be given up; "plan" stands for edits of its own that cannot be understood."""


class DecodedRow(TypedDict):
    """A photo as pixels, upright, with everything that is needed to write it in its own format."""

    key: str
    sha256: str
    """Of the input's bytes; it names the photo's noise."""
    pixels: np.ndarray
    """uint8 RGB [H, W, 3]."""
    alpha: np.ndarray | None
    """uint8 [H, W] where the photo has transparency, which is written back unchanged."""
    grey: bool
    """Whether the photo has one channel; it is then written with one again."""
    format: Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF"]
    """Of the content, whatever the key's suffix says."""
    lossless: bool
    """Whether the photo's own coding is lossless."""
    exif: bytes
    """Without the orientation, since the pixels are upright, and without the thumbnail, which would
    show the face before the edit."""
    icc: bytes
    """Colour profile of the pixels; b"" where there is none."""
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
