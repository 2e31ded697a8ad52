"""Encode edited pixels like the file that they came from, with what was done written inside."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bs_ray.images.containers import OUR_KEY
from bs_ray.images.deep import edited_deep, halves, png_of, shallow
from bs_ray.images.exif import EXIF_DIRECTORY, USER_COMMENT
from bs_ray.images.rows import DecodedRow
from bs_ray.images.tiff import IPTC, XMP, deepened

_ASCII = b"ASCII\0\0\0"
_TEXT_KEY = OUR_KEY.decode()


def encode(
    row: DecodedRow, provenance: dict[str, Any], quality: int | None = None, png_level: int = 6
) -> bytes:
    """The edited photo as a file of the row's format; equal rows give equal bytes.

    quality: of JPEG, which then has no chroma subsampling, and of lossy WebP, HEIF and AVIF. Left
    out, a JPEG is compressed as it was, the others at 95 (AVIF: 90). png_level: zlib's; 1 takes a
    quarter of the time of 6, and up to a fifth more bytes. One-channel photos keep their one
    channel, 16 bits their 16. Provenance goes into EXIF's UserComment, or into a PNG's text; a BMP
    has no room for it.
    """
    if row["source"] is not None:
        return row["source"]
    options = {**_METADATA[row["format"]](row, provenance), **_compression(row, quality)}
    if row["side"]["dpi"]:
        options["dpi"] = row["side"]["dpi"]
    if row["icc"]:
        options["icc_profile"] = row["icc"]
    if row["format"] == "PNG":
        options["compress_level"] = png_level
    deep = row["deep"] if row["format"] in _DEEPENED else None
    if deep is None:
        return _saved(_image(row), row["format"], options)
    edited = edited_deep(deep, row["pixels"])
    if row["format"] == "PNG":
        return png_of(_saved(shallow(edited), "PNG", options), edited, png_level)
    return deepened(_saved(halves(edited), "TIFF", options))


_DEEPENED = ("PNG", "TIFF")
"""Formats that are written with 16 bits a channel."""


def not_written(row: DecodedRow, kind: str) -> list[str]:
    """What a photo has and a file of another format than its own will not have, one note each."""
    side = row["side"]
    lost = {
        "16 bits became 8": row["deep"] is not None and kind not in _DEEPENED,
        "transparency dropped": row["alpha"] is not None and kind == "JPEG",
        "IPTC dropped": side["iptc"] and kind not in ("JPEG", "TIFF"),
        "comment dropped": side["comment"] and row["format"] == "JPEG" and kind != "JPEG",
        "texts dropped": side["chunks"] and kind != "PNG",
        "dpi dropped": side["dpi"] and kind not in ("JPEG", "PNG", "TIFF", "BMP"),
    }
    return [note for note, is_so in lost.items() if is_so]


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read_provenance(data: bytes) -> dict[str, Any] | None:
    """What `encode` wrote into a file; None where it wrote nothing."""
    with Image.open(BytesIO(data)) as image:
        text = image.info.get(_TEXT_KEY)
        if text is None:
            comment = image.getexif().get_ifd(EXIF_DIRECTORY).get(USER_COMMENT, b"")
            text = bytes(comment).removeprefix(_ASCII).decode("ascii", "replace")
    try:
        return json.loads(text)[_TEXT_KEY]
    except (ValueError, KeyError, TypeError):
        return None


def _image(row: DecodedRow) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(row["pixels"]))
    if row["grey"]:
        image = image.convert("L")
    if row["alpha"] is not None:
        image.putalpha(Image.fromarray(row["alpha"]))
    return image


def _compression(row: DecodedRow, quality: int | None) -> dict[str, Any]:
    jpeg = row["side"]["jpeg"]
    if row["format"] == "JPEG" and jpeg and quality is None:
        return {
            "qtables": jpeg["tables"],
            "subsampling": jpeg["subsampling"],
            "progressive": jpeg["progressive"],
        }
    if row["format"] == "WEBP":
        return {"exact": True, **({"lossless": True} if row["lossless"] else _at(quality))}
    if row["format"] == "AVIF":
        return {"quality": 90 if quality is None else quality, "max_threads": 1}
    return {"JPEG": {**_at(quality), "subsampling": 0}, "HEIF": _at(quality)}.get(row["format"], {})


def _at(quality: int | None) -> dict[str, Any]:
    return {"quality": 95 if quality is None else quality}


# --- metadata, as options of Pillow's save ----------------------------------------------------
def _jpeg(row: DecodedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    side, options = row["side"], _exif_and_xmp(row, provenance)
    if side["iptc"]:
        options["extra"] = _photoshop_segment(side["iptc"])
    if row["side"]["jpeg"]:  # a PNG's comment is another thing
        options["comment"] = side["comment"]
    return options


def _photoshop_segment(iptc: bytes) -> bytes:
    """IPTC is the resource 0x0404 of a JPEG's segment for Photoshop."""
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def _png(row: DecodedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    side, text = row["side"], PngInfo()
    for kind, data in side["chunks"]:
        text.add(kind, data)
    if side["xmp"]:
        text.add_itxt("XML:com.adobe.xmp", side["xmp"].decode("utf-8", "replace"))
    text.add_text(_TEXT_KEY, _json(_comment(provenance, b"" if side["jpeg"] else side["comment"])))
    return {"pnginfo": text, **({"exif": row["exif"]} if row["exif"] else {})}


def _tiff(row: DecodedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    # Uncompressed: libtiff, which would compress, writes no EXIF directories.
    block = Image.Exif()
    block.load(_with_comment(row["exif"], provenance))
    for tag, name in ((XMP, "xmp"), (IPTC, "iptc")):
        if data := row["side"][name]:  # type: ignore[literal-required]
            block[tag] = data
    return {"exif": block}


def _exif_and_xmp(row: DecodedRow, provenance: dict[str, Any]) -> dict[str, Any]:
    xmp = {"xmp": row["side"]["xmp"]} if row["side"]["xmp"] else {}
    return {"exif": _with_comment(row["exif"], provenance), **xmp}


_METADATA: dict[str, Callable[[DecodedRow, dict[str, Any]], dict[str, Any]]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "TIFF": _tiff,
    "BMP": lambda row, provenance: {},
    "WEBP": _exif_and_xmp,
    "AVIF": _exif_and_xmp,
    "HEIF": _exif_and_xmp,
}


def _with_comment(exif: bytes, provenance: dict[str, Any]) -> bytes:
    """The EXIF block with our UserComment, which contains the photo's own one."""
    block = Image.Exif()
    block.load(exif)
    directory = block.get_ifd(EXIF_DIRECTORY)
    before = bytes(directory.get(USER_COMMENT, b""))
    comment = _comment(provenance, before.removeprefix(_ASCII))
    directory[USER_COMMENT] = _ASCII + _json(comment).encode("ascii")
    return block.tobytes()


def _comment(provenance: dict[str, Any], before: bytes) -> dict[str, Any]:
    """before: what stood in its place."""
    comment: dict[str, Any] = {_TEXT_KEY: provenance}
    if before.strip(b"\0 "):
        comment["before"] = before.decode("utf-8", "replace")
    return comment


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
