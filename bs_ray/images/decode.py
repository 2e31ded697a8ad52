"""Decode an image file into upright uint8 RGB pixels, or into a QuarantinedRow that says why
not."""

from __future__ import annotations

import hashlib
import re
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bs_ray.images.formats import FORMATS
from bs_ray.images.rows import DecodedRow, QuarantinedRow, quarantined

_GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I"}
_DEEP_MODES = {"I;16", "I;16L", "I;16B", "I"}
# In a TIFF one directory holds the tags of the photo and those of its storage. These are the
# photo's.
_DESCRIPTIVE_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_SUB_DIRECTORIES = (0x8769, 0x8825)  # Exif, GPS
_ORIENTATION = 274


class _Refused(Exception):
    """A photo that is not taken on purpose; the text is the reason."""


def decode(
    key: str, data: bytes, *, max_pixels: int, keep_source: bool = False
) -> DecodedRow | QuarantinedRow:
    """Decode one image file. Whatever is wrong with it ends in a QuarantinedRow.

    keep_source: keep the bytes in the row, for jobs that copy. The number of pixels is checked
    before anything is decoded.
    """
    try:
        return _decode(key, data, max_pixels, keep_source)
    except _Refused as refused:
        return quarantined(key, "decode", str(refused))
    except MemoryError:
        raise  # the limit is the caller's, who can name it
    except Exception as error:  # Pillow's decoders raise at least six types
        return quarantined(key, "decode", _what_went_wrong(error))


def _decode(key: str, data: bytes, max_pixels: int, keep_source: bool) -> DecodedRow:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about odd metadata; what matters raises
        with _open(data) as image:
            _check(image, max_pixels)
            image.load()
            photo, exif, note = _upright(image)
            pixels, alpha = _pixels(photo)
            # A profile describes the channels that it came with, and these two become RGB.
            profiled = image.mode not in ("CMYK", "LAB")
            if not profiled:
                note = "; ".join(filter(None, [note, f"{image.mode} became RGB"]))
            if image.mode in _DEEP_MODES:
                note = "; ".join(filter(None, [note, "16 bits became 8"]))
            return DecodedRow(
                key=key,
                sha256=hashlib.sha256(data).hexdigest(),
                pixels=pixels,
                alpha=alpha,
                grey=image.mode in _GREY_MODES,
                # Many phones write MPO: a JPEG with more pictures behind the photo.
                format="JPEG" if image.format == "MPO" else image.format,  # type: ignore[typeddict-item]
                lossless=image.format in ("PNG", "BMP", "TIFF") or data[12:16] == b"VP8L",
                exif=exif,
                icc=(image.info.get("icc_profile") or b"") if profiled else b"",
                source=data if keep_source else None,
                note=note,
            )


def _open(data: bytes) -> Image.Image:
    if not data:
        raise _Refused("empty: the file has no bytes")
    Image.MAX_IMAGE_PIXELS = None  # `_check` enforces the job's own limit
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if kind := _begins_like(data):
            raise _Refused(f"damaged: its {kind} header cannot be read") from None
        raise _Refused(
            f"not an image: got content that begins {data[:8]!r}; expected JPEG, PNG, WebP, BMP or "
            "TIFF"
        ) from None


def _begins_like(data: bytes) -> str | None:
    accepts = {kind: Image.OPEN[kind][1] for kind in FORMATS}
    return next((kind for kind, of in accepts.items() if of and of(data[:16])), None)


def _check(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _Refused(
            f"too many pixels: got {width} x {height}; expected at most {max_pixels} (max_pixels)"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise _Refused(f"several frames: got {frames}; expected a photo of one")
    if image.mode == "F":
        raise _Refused("no photo: got floating-point values; expected 8 or 16 bits per channel")


def _upright(image: Image.Image) -> tuple[Image.Image, bytes, str]:
    """(the photo, turned as its EXIF says; that EXIF without the orientation; a note)."""
    try:
        exif = _kept_exif(image)
        return ImageOps.exif_transpose(image), exif, ""
    except Exception as error:  # damaged metadata around a sound photo
        return image, b"", f"EXIF dropped: {type(error).__name__}"


def _kept_exif(image: Image.Image) -> bytes:
    found = image.getexif()
    kept = Image.Exif()
    for tag, value in found.items():
        descriptive = image.format != "TIFF" or tag in _DESCRIPTIVE_TAGS
        if descriptive and tag not in (_ORIENTATION, *_SUB_DIRECTORIES):
            kept[tag] = value
    for directory in _SUB_DIRECTORIES:
        if values := found.get_ifd(directory):
            kept.get_ifd(directory).update(values)
    return kept.tobytes() if len(kept) or any(map(kept.get_ifd, _SUB_DIRECTORIES)) else b""


def _pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 RGB [H, W, 3] and, where there is transparency, uint8 [H, W]."""
    if image.mode in _DEEP_MODES:
        # x / 257 rounded, in place: at 64 megapixels every further array takes 256 MB.
        deep = np.asarray(image).astype(np.int32)
        np.clip(deep, 0, 65535, out=deep)
        deep += 128
        deep //= 257
        image = Image.fromarray(deep.astype(np.uint8))
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[..., :3].copy(), rgba[..., 3].copy()
    return np.array(image.convert("RGB")), None


def _what_went_wrong(error: Exception) -> str:
    # Object addresses in a message would differ from run to run, and a damaged file's own words may
    # not be text.
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
    text = " ".join(text.encode("ascii", "backslashreplace").decode().split())[:200]
    return f"truncated: {text}" if "truncated" in text.lower() else f"damaged: {text}"
