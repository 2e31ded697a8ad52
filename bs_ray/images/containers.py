"""A file's pixels and what it says beside them, told apart before anything is decoded.

Metadata never decides about a photo: the decoder gets the file without it, and each part of it is
read by itself. What is not kept is named.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from bs_ray.images import tiff

Chunk = tuple[bytes, bytes]
"""A PNG chunk: its type and its data."""

_LIMITS = {"XMP": 64_000, "IPTC": 64_000, "comment": 64_000, "colour profile": 1 << 20}
"""Larger ones are dropped, since no JPEG could hold them; Pillow reads no larger profile."""
_TEXT_BYTES = 64_000  # of one text of a PNG, unpacked
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_XMP_KEY = b"XML:com.adobe.xmp"
OUR_KEY = b"bs_ray"
"""Key of the text of a PNG which says how it was made."""


@dataclass
class Parts:
    """An image file, taken apart."""

    pixels: bytes
    """The file without its metadata."""
    exif: bytes = b""
    """A TIFF block. In a TIFF that is the whole file."""
    icc: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    comment: bytes = b""
    dpi: tuple[float, float] | None = None
    """Pixels an inch, across and down."""
    chunks: list[Chunk] = field(default_factory=list)
    """Of a PNG: those that can be written again as they are."""
    notes: list[str] = field(default_factory=list)
    """What is not kept."""

    def drop(self, what: str, why: str = "") -> None:
        """Note that something is not kept."""
        note = f"{what} dropped{': ' if why else ''}{why}"
        if note not in self.notes:
            self.notes.append(note)

    def keep(self, what: str, name: str, data: bytes) -> None:
        """Set a field, unless it is set already or the data is too long for it."""
        if getattr(self, name):
            self.drop(f"second {what}")
        elif len(data) > _LIMITS.get(what, len(data)):
            self.drop(what, f"{len(data)} bytes, expected at most {_LIMITS[what]}")
        else:
            setattr(self, name, data)


def take_apart(data: bytes) -> Parts:
    """Pixels and metadata of a file of any format. Damage is left for the decoder to find."""
    for begin, walk in _WALKS.items():
        if re.match(begin, data, re.DOTALL):
            parts = Parts(data)
            try:
                walk(data, parts)
            except (ValueError, struct.error) as error:
                parts.drop("metadata", str(error))
            _check_xmp(parts)
            return parts
    return Parts(data)


def _check_xmp(parts: Parts) -> None:
    """XMP tells how to turn the photo, which has been done, and may show the face before."""
    parts.xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", parts.xmp)
    if re.search(rb"xmpGImg:image|Thumbnails|GDepth:Data|GImage:Data", parts.xmp):
        parts.xmp = b""
        parts.drop("XMP", "it holds pictures of the photo before the edit")


# --- JPEG ---------------------------------------------------------------------------------------
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_SCAN, _APP0, _APP15, _COMMENT = 0xDA, 0xE0, 0xEF, 0xFE


def _jpeg(data: bytes, parts: Parts) -> None:
    kept, profile, photoshop, at = [data[:2]], list[bytes](), b"", 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2  # fill bytes mean nothing
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN or end > len(data):
            break
        body = data[at + 4 : end]
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            kept.append(data[at:end])
        elif body.startswith((b"JFIF\0", b"Adobe")):  # they say which colours the samples are
            kept.append(data[at:end])
            parts.dpi = parts.dpi or _jfif_dpi(body)
        elif body.startswith(b"ICC_PROFILE\0"):
            profile.append(body[12:])
        elif body.startswith(b"Photoshop 3.0\0"):
            photoshop += body[14:]
        else:
            _jpeg_segment(marker, body, parts)
        at = end
    parts.pixels = b"".join([*kept, data[at:]])
    _join_profile(profile, parts)
    _read_photoshop(photoshop, parts)
    end = data.find(b"\xff\xd9", at)
    if end >= 0 and data[end + 2 :].strip(b"\0\xff\r\n") and not parts.notes:
        parts.drop("data behind the photo", f"{len(data) - end - 2} bytes")


def _jfif_dpi(body: bytes) -> tuple[float, float] | None:
    if len(body) < 12 or not body.startswith(b"JFIF"):
        return None
    unit, across, down = struct.unpack_from(">BHH", body, 7)
    factor = {1: 1.0, 2: 2.54}.get(unit, 0.0)
    return (across * factor, down * factor) if factor and across and down else None


def _jpeg_segment(marker: int, body: bytes, parts: Parts) -> None:
    if marker == _COMMENT:
        parts.keep("comment", "comment", body)
    elif body.startswith(_EXIF):
        parts.keep("EXIF", "exif", body[len(_EXIF) :])
    elif body.startswith(_XMP):
        parts.keep("XMP", "xmp", body[len(_XMP) :])
    elif body.startswith(b"http://ns.adobe.com/xmp/extension/"):
        parts.drop("extended XMP")
    elif body.startswith(b"MPF\0"):
        parts.drop("further pictures of the file")
    elif not body.startswith(b"JFXX"):  # a thumbnail, as EXIF has one
        name = re.match(rb"[A-Za-z0-9_.: -]*", body)
        title = name[0][:20].decode().strip() if name else ""
        parts.drop(f"APP{marker - _APP0} {title}".strip())


def _join_profile(pieces: list[bytes], parts: Parts) -> None:
    """Pieces: number, how many, data. A profile in pieces of which one lacks is of no use."""
    if not pieces:
        return
    numbered = {piece[0]: piece[2:] for piece in pieces if len(piece) > 2}
    if sorted(numbered) != list(range(1, pieces[0][1] + 1)) or len(numbered) != len(pieces):
        parts.drop("colour profile", "its pieces do not fit together")
    else:
        parts.keep("colour profile", "icc", b"".join(numbered[n] for n in sorted(numbered)))


def _read_photoshop(data: bytes, parts: Parts) -> None:
    """Photoshop's resources, of which IPTC is one; thumbnails are among the others."""
    at, others = 0, False
    while at + 12 <= len(data) and data[at : at + 4] == b"8BIM":
        [number] = struct.unpack_from(">H", data, at + 4)
        name = 1 + data[at + 6]
        body = at + 6 + name + name % 2
        [size] = struct.unpack_from(">I", data, body)
        if number == 0x0404:
            parts.keep("IPTC", "iptc", data[body + 4 : body + 4 + size])
        others = others or number != 0x0404
        at = body + 4 + size + size % 2
    if others:
        parts.drop("Photoshop resources")


# --- PNG ----------------------------------------------------------------------------------------
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
_COLOUR_CHUNKS = {b"cHRM", b"gAMA", b"sRGB", b"cICP"}
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}


def _png(data: bytes, parts: Parts) -> None:
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        [size] = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + size
        if end > len(data):
            break
        body = data[at + 8 : end - 4]
        if kind in _PIXEL_CHUNKS or kind[:1].isupper():
            kept.append(data[at:end])
        elif zlib.crc32(kind + body) != int.from_bytes(data[end - 4 : end], "big"):
            parts.drop(_named(kind), "its checksum is wrong")
        else:
            _png_chunk(kind, body, parts)
        at = end
        if kind == b"IEND":
            break
    parts.pixels = b"".join([*kept, data[at:]])


def _named(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")


def _png_chunk(kind: bytes, body: bytes, parts: Parts) -> None:
    if kind == b"eXIf":
        parts.keep("EXIF", "exif", body.removeprefix(_EXIF))
    elif kind == b"iCCP":
        profile = _inflated(body.partition(b"\0")[2][1:], _LIMITS["colour profile"])
        if profile is None:
            parts.drop("colour profile", "damaged, or too large")
        else:
            parts.keep("colour profile", "icc", profile)
    elif kind == b"pHYs" and len(body) == 9 and body[8] == 1:
        across, down = struct.unpack_from(">II", body)
        parts.dpi = (across * 0.0254, down * 0.0254) if across and down else None
    elif kind in _TEXT_CHUNKS:
        _png_text(kind, body, parts)
    elif kind in _COLOUR_CHUNKS:
        parts.chunks.append((kind, body))
    else:
        parts.drop(_named(kind))


def _png_text(kind: bytes, body: bytes, parts: Parts) -> None:
    key, _, rest = body.partition(b"\0")
    shown = f"text {key[:40].decode('latin-1')!r}"
    if kind == b"iTXt":
        packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        packed, text = kind == b"zTXt", rest[kind == b"zTXt" :]
    whole = _inflated(text, _TEXT_BYTES) if packed else text
    if key == OUR_KEY:
        parts.comment = parts.comment or (whole or b"")
    elif key == _XMP_KEY and whole is not None:
        parts.keep("XMP", "xmp", whole)
    elif whole is None or len(whole) > _TEXT_BYTES:
        parts.drop("XMP" if key == _XMP_KEY else shown, "damaged, or too large")
    elif key.startswith(b"Raw profile type "):  # ImageMagick's, with a thumbnail maybe
        parts.drop(shown)
    else:
        parts.chunks.append((kind, body))


def _inflated(data: bytes, limit: int) -> bytes | None:
    """What zlib packed; None where it is damaged or longer than the limit."""
    packer = zlib.decompressobj()
    try:
        whole = packer.decompress(data, limit + 1)
    except zlib.error:
        return None
    return whole if len(whole) <= limit and packer.eof else None


# --- WebP ---------------------------------------------------------------------------------------
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_FIELDS = {
    b"ICCP": ("colour profile", "icc"),
    b"EXIF": ("EXIF", "exif"),
    b"XMP ": ("XMP", "xmp"),
}
_WEBP_FLAGS = 0x20 | 0x08 | 0x04  # of the three in the extended header


def _webp(data: bytes, parts: Parts) -> None:
    kept, at = list[bytes](), 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        body = data[at + 8 : at + 8 + size]
        if kind == b"VP8X" and body:
            flags = bytes([body[0] & ~_WEBP_FLAGS])
            kept.append(data[at : at + 8] + flags + data[at + 9 : end])
        elif kind in _WEBP_PIXELS:
            kept.append(data[at:end])
        elif kind in _WEBP_FIELDS and len(body) == size:
            parts.keep(*_WEBP_FIELDS[kind], body.removeprefix(_EXIF))
        else:
            parts.drop(_named(kind).strip())
        at = end
    body = b"WEBP" + b"".join(kept)
    parts.pixels = b"RIFF" + struct.pack("<I", len(body)) + body


# --- TIFF ---------------------------------------------------------------------------------------
def _tiff(data: bytes, parts: Parts) -> None:
    if data[2:4] in (b"+\0", b"\0+"):
        raise ValueError("it is that of a BigTIFF, which is not read here")
    directory = tiff.read_directory(data)
    parts.pixels, parts.exif = tiff.pixels_only(data, directory), data
    parts.dpi = directory.dpi()
    for tag, (what, name) in {
        tiff.ICC: ("colour profile", "icc"),
        tiff.XMP: ("XMP", "xmp"),
        tiff.IPTC: ("IPTC", "iptc"),
    }.items():
        if tag in directory.tags:
            parts.keep(what, name, directory.data(tag))
    if tiff.PHOTOSHOP in directory.tags:
        parts.drop("Photoshop resources")


_WALKS: dict[bytes, Callable[[bytes, Parts], None]] = {
    rb"\xff\xd8\xff": _jpeg,
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"RIFF....WEBP": _webp,
    rb"II\*\0|MM\0[*]|II[+]\0|MM\0[+]": _tiff,
}
"""How a file begins -> what takes it apart."""
