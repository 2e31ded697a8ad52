"""Photos and masks in, picture files out: by the same functions as in batch, for the same
results."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from bs_ray import __version__
from bs_ray.config import ServeJob
from bs_ray.editing.views import to_uint8
from bs_ray.images.decode_pool import shared_decode_pool
from bs_ray.images.encode import encode, not_written
from bs_ray.images.rows import NO_SIDE_DATA, DecodedRow, is_quarantined
from bs_ray.serve.http.problems import Problem
from bs_ray.serve.http.schema import OutputFormat

MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "npy": "application/octet-stream",
}

_PNG_LEVEL = 1
"""A caller waits; a photo of 12 megapixels takes two seconds more at zlib's own level."""


async def read_photo(data: bytes, job: ServeJob, field: str = "image") -> DecodedRow:
    """The decoded photo. Raises Problem 400 or 413."""
    if len(data) > job.max_bytes:
        raise too_large(f"{field}: got {len(data)} bytes", job.max_bytes)
    pool = shared_decode_pool(job.decode_s, job.decode_mb)
    [row] = await asyncio.to_thread(pool.decode, [(field, data)], max_pixels=job.max_pixels)
    if is_quarantined(row):
        large = row["reason"].startswith("too many pixels")
        status, kind = (413, "too-many-pixels") if large else (400, "bad-image")
        raise Problem(status, kind, f"{field}: {row['reason']}")
    return row


async def read_mask(data: bytes, photo: DecodedRow, job: ServeJob) -> np.ndarray:
    """Where the photo may change: float32 [H, W], 1 where the mask is transparent, as in OpenAI's
    API.

    Raises Problem 400 for a mask without transparency or of another size.
    """
    row = await read_photo(data, job, "mask")
    size, expected = row["pixels"].shape[:2], photo["pixels"].shape[:2]
    if size != expected:
        raise Problem(
            400,
            "bad-mask",
            f"mask: got {size[1]} x {size[0]}; expected the photo's {expected[1]} x {expected[0]}",
        )
    if row["alpha"] is None:
        raise Problem(
            400,
            "bad-mask",
            "mask: got an image without transparency; expected a PNG that is transparent where "
            "the photo may change",
        )
    return 1 - row["alpha"].astype(np.float32) / 255


def too_large(got: str, limit_bytes: int) -> Problem:
    """413 for more bytes than the limit."""
    return Problem(
        413, "too-large", f"{got}; expected at most {limit_bytes} bytes", max_bytes=limit_bytes
    )


def write_picture(
    pixels: np.ndarray,
    form: OutputFormat,
    quality: int,
    photo: DecodedRow | None,
    made: Mapping[str, Any],
) -> bytes:
    """Pixels [H, W, 3] in [0, 255] as a picture file, which records how it was made.

    photo: the photo that was edited; its transparency, EXIF and colour profile are kept. A `npy`
    file is float32 and records nothing.
    """
    if form == "npy":
        file = io.BytesIO()
        np.save(file, pixels.astype(np.float32, copy=False), allow_pickle=False)
        return file.getvalue()
    image = pixels if pixels.dtype == np.uint8 else to_uint8(pixels)
    kept: dict[str, Any] = dict(photo or _GENERATED)
    changed: dict[str, Any] = {
        "pixels": image,
        "format": form.upper(),
        "source": None,
        "lossless": False,
        "alpha": None if form == "jpeg" else kept["alpha"],
    }
    row: Any = kept | changed
    return encode(row, {**made, "bs_ray": __version__}, quality, png_level=_PNG_LEVEL)


_GENERATED = {
    "alpha": None,
    "deep": None,
    "grey": False,
    "exif": b"",
    "icc": b"",
    "side": NO_SIDE_DATA,
}


def lost_in(photo: DecodedRow, form: OutputFormat) -> list[str]:
    """What a photo has and a picture file of this form will not have."""
    return not_written(photo, form.upper()) if form != "npy" else []


def strip(pictures: list[np.ndarray]) -> bytes:
    """A PNG of pictures of one size, side by side."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(file, "PNG")
    return file.getvalue()
