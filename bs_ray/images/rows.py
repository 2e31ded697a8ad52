"""Rows on their way from a prefix of photos to a prefix of edited ones. No models here.

    manifest -> ImageRow -> fetch, decode -> PlannedRow -> (editing) -> EditedRows -> OutputRows
                                   |                           |              |
                                   +------ QuarantinedRow -----+--------------+

A photo leaves with all its edits or in quarantine: inputs = edited + quarantined, by key.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import numpy as np
from typing_extensions import TypeIs

Stage = Literal["plan", "fetch", "decode", "edit", "encode"]
"""Where a photo can be given up."""


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
