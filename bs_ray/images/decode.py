"""Decode an image file into upright uint8 RGB pixels, or into a QuarantinedRow that says why
not."""

from __future__ import annotations

import hashlib
import re
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from bs_ray.images.containers import Parts, take_apart
from bs_ray.images.deep import bits_of, read_deep, to_eight
from bs_ray.images.exif import kept_exif, orientation
from bs_ray.images.formats import FORMATS, PLUGINS
from bs_ray.images.rows import DecodedRow, JpegCoding, QuarantinedRow, SideData, quarantined

_GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I"}
_DEEP_MODES = {"I;16", "I;16L", "I;16B", "I"}
_TAKEN_APART = {"JPEG", "PNG", "WEBP", "TIFF", "BMP"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what makes the photo upright."""


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
        parts = take_apart(data)
        with _open(parts.pixels) as image:
            _check(image, max_pixels)
            if image.format not in _TAKEN_APART:
                _read_parts(image, parts)
            photo, deep = _samples(image, parts)
            turn = _TURNS.get(orientation(parts.exif)) if parts.exif else None
            if turn is not None:
                photo = photo.transpose(turn)
                deep = None if deep is None else _turned(deep, turn)
            pixels, alpha = _pixels(photo)
            exif, lost = kept_exif(parts.exif, image.format == "TIFF") if parts.exif else (b"", [])
            # A profile describes the channels that it came with, and these two become RGB.
            profiled = image.mode not in ("CMYK", "LAB")
            if not profiled:
                parts.notes.append(f"{image.mode} became RGB")
            return DecodedRow(
                key=key,
                sha256=hashlib.sha256(data).hexdigest(),
                pixels=pixels,
                alpha=alpha,
                deep=deep,
                grey=image.mode in _GREY_MODES if deep is None else deep.shape[-1] < 3,
                format=image.format,  # type: ignore[typeddict-item]
                lossless=image.format in ("PNG", "BMP", "TIFF") or b"VP8L" in parts.pixels[12:64],
                exif=exif,
                icc=parts.icc if profiled else b"",
                side=_side(image, parts),
                source=data if keep_source else None,
                note="; ".join([*lost, *parts.notes]),
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
        if kind := _unread(data):
            raise _Refused(f"no reader: got {kind}; install {PLUGINS[kind]}") from None
        raise _Refused(
            f"not an image: got content that begins {data[:8]!r}; expected one of "
            f"{', '.join(FORMATS)}"
        ) from None


def _begins_like(data: bytes) -> str | None:
    accepts = {kind: Image.OPEN[kind][1] for kind in FORMATS}
    return next((kind for kind, of in accepts.items() if of and of(data[:16]) is True), None)


def _unread(data: bytes) -> str | None:
    """The format of a file that a plug-in would read, if it is not installed."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    kind = {b"avif": "AVIF", b"avis": "AVIF"}.get(brand, "HEIF" if brand in _HEIF_BRANDS else None)
    return kind if kind not in FORMATS else None


def _check(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _Refused(
            f"too many pixels: got {width} x {height}; expected at most {max_pixels} (max_pixels)"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "HEIF":  # a HEIF names the one which is the photo
        raise _Refused(f"several frames: got {frames}; expected a photo of one")
    if image.mode == "F":
        raise _Refused("no photo: got floating-point values; expected 8 or 16 bits per channel")


def _read_parts(image: Image.Image, parts: Parts) -> None:
    """The metadata of a format that is not taken apart here, as Pillow found it."""
    if exif := image.info.get("exif"):
        parts.keep("EXIF", "exif", exif.removeprefix(b"Exif\0\0"))
    if icc := image.info.get("icc_profile"):
        parts.keep("colour profile", "icc", icc)
    if xmp := image.info.get("xmp"):
        parts.keep("XMP", "xmp", xmp)
    if getattr(image, "n_frames", 1) > 1:
        parts.drop("further pictures of the file")


def _samples(image: Image.Image, parts: Parts) -> tuple[Image.Image, np.ndarray | None]:
    """(the picture decoded, 8 bits a channel; its 16 bits where they can be kept), not yet upright.

    Notes where bits are lost.
    """
    bits = _bits(parts.pixels) if image.format in ("AVIF", "HEIF") else bits_of(image)
    deep = None
    if bits == 16:
        with _open(parts.pixels) as again:
            deep = read_deep(image, again)
    if deep is None:
        image.load()
        if bits > 8:
            parts.notes.append(f"{bits} bits became 8")
        return image, None
    array = to_eight(deep)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), deep


def _bits(data: bytes) -> int:
    """Bits a channel of a HEIF or AVIF, as its property `pixi` says."""
    at = data.find(b"pixi")
    return data[at + 9] if 0 <= at < len(data) - 9 else 8


def _turned(deep: np.ndarray, turn: Image.Transpose) -> np.ndarray:
    """The array as Pillow turns pictures, which it cannot do with these."""
    if turn in (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE):
        deep = deep.swapaxes(0, 1)
        return deep if turn == Image.Transpose.TRANSPOSE else deep[::-1, ::-1]
    quarters = {Image.Transpose.ROTATE_90: 1, Image.Transpose.ROTATE_180: 2,
                Image.Transpose.ROTATE_270: 3}.get(turn)  # fmt: skip
    if quarters:
        return np.rot90(deep, quarters)
    return deep[:, ::-1] if turn == Image.Transpose.FLIP_LEFT_RIGHT else deep[::-1]


def _pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 RGB [H, W, 3] and, where there is transparency, uint8 [H, W]."""
    if image.mode in _DEEP_MODES:
        wide = np.asarray(image).astype(np.int32)
        image = Image.fromarray(to_eight(np.clip(wide, 0, 65535, out=wide)))
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[..., :3].copy(), rgba[..., 3].copy()
    return np.array(image.convert("RGB")), None


def _side(image: Image.Image, parts: Parts) -> SideData:
    dpi = image.info.get("dpi") if image.format == "BMP" else parts.dpi
    dpi = dpi if dpi and all(dpi) else None
    return {
        "xmp": parts.xmp,
        "iptc": parts.iptc,
        "comment": parts.comment,
        "dpi": (float(dpi[0]), float(dpi[1])) if dpi else None,
        "chunks": parts.chunks,
        "jpeg": _jpeg_coding(image) if image.format == "JPEG" else None,
    }


def _jpeg_coding(image: Image.Image) -> JpegCoding:
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    return {
        "tables": [list(image.quantization[n]) for n in sorted(image.quantization)],
        # Rarer layouts than Pillow can write become 4:4:4, which loses nothing.
        "subsampling": max(0, JpegImagePlugin.get_sampling(image)),
        "progressive": "progressive" in image.info,
    }


def _what_went_wrong(error: Exception) -> str:
    # Object addresses in a message would differ from run to run, and a damaged file's own words may
    # not be text.
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
    text = " ".join(text.encode("ascii", "backslashreplace").decode().split())[:200]
    return f"truncated: {text}" if "truncated" in text.lower() else f"damaged: {text}"
