"""Sixteen bits a channel: read where Pillow reads eight, edited, and written where it writes eight.

The editor works on 8 bits. What it changed is added to the 16-bit photo, so that whatever it left
alone keeps all its bits.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

_STEP = 257  # one step of 8 bits, in those of 16
_WHITE_IS_ZERO = 0  # a TIFF's, which Pillow turns around for 8 bits alone
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of a PNG, by channels
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# What Pillow calls the layout of 16-bit samples -> the layout whose high bytes are the low ones.
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in {"B": "L", "L": "B", "N": "B"}.items()
}


def read_deep(image: Image.Image, again: Image.Image) -> np.ndarray | None:
    """uint16 [H, W, C] of a PNG or TIFF with 16 bits a channel; None of any other.

    again: the same file opened once more; both are decoded here. A transparent colour is left to
    Pillow, and so are rarer layouts: None.
    """
    layout = _layout(image)
    if "transparency" in image.info:
        return None
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint16)[..., None]
        return 65535 - deep if getattr(image, "tag_v2", {}).get(262) == _WHITE_IS_ZERO else deep
    if layout == "LA;16B" and image.mode == "RGBA":
        _relay(image, "RGBA")  # four bytes a pixel: high and low of grey, high and low of alpha
        halves = np.asarray(image).astype(np.uint16)
        return halves[..., 0::2] << 8 | halves[..., 1::2]
    if layout in _LOW_BYTES and layout.partition(";")[0] == image.mode:
        _relay(again, _LOW_BYTES[layout])
        return np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)
    return None


def bits_of(image: Image.Image) -> int:
    """Bits a channel of a PNG or TIFF, opened and not yet decoded; at least 8."""
    stored = getattr(image, "tag_v2", {}).get(258) or (16 if ";16" in _layout(image) else 8)
    return max(8, *stored) if isinstance(stored, tuple) else max(8, stored)


def _layout(image: Image.Image) -> str:
    tiles = getattr(image, "tile", [])
    arguments = tiles[0].args if tiles else ""
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def _relay(image: Image.Image, layout: str) -> None:
    def changed(arguments: object) -> object:
        return (layout, *arguments[1:]) if isinstance(arguments, tuple) else layout

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]  # type: ignore


def to_eight(deep: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, x / 257 rounded."""
    # In place: at 64 megapixels every further array takes 256 MB and more.
    wide = deep.astype(np.uint32)
    wide += 128
    wide //= _STEP
    return wide.astype(np.uint8)


def edited_deep(deep: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The 16-bit photo with what was changed in `pixels`, uint8 RGB [H, W, 3] of the same photo."""
    colours = 1 if deep.shape[-1] < 3 else 3
    before = to_eight(deep[..., :colours])
    after = pixels if colours == 3 else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    moved = deep[..., :colours].astype(np.int32)
    moved += (after.astype(np.int32) - before) * _STEP
    return np.concatenate([np.clip(moved, 0, 65535).astype(np.uint16), deep[..., colours:]], axis=2)


def shallow(deep: np.ndarray) -> Image.Image:
    """The picture with 8 bits a channel, which Pillow writes with everything around it."""
    array = to_eight(deep)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def png_of(file: bytes, deep: np.ndarray, level: int = 6) -> bytes:
    """A PNG of `shallow(deep)` with 16 bits a channel instead."""
    rows = np.frombuffer(deep.astype(">u2").tobytes(), np.uint8).reshape(len(deep), -1)
    up = rows.copy()
    up[1:] -= rows[:-1]  # PNG's filter 2: the difference from the row above
    body = zlib.compress(np.pad(up, ((0, 0), (1, 0)), constant_values=2).tobytes(), level)
    made, at = [file[:8]], 8
    while at < len(file):
        [size] = struct.unpack_from(">I", file, at)
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            data = data[:8] + bytes([16, _COLOUR_TYPES[deep.shape[-1]]]) + data[10:]
        if kind != b"IDAT":
            made.append(_chunk(kind, data))
        elif body:
            made.append(_chunk(kind, body))
            body = b""
        at += 12 + size
    return b"".join(made)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def halves(deep: np.ndarray) -> Image.Image:
    """The picture of 8 bits and twice the width whose bytes are those of `deep`.

    A TIFF of it becomes that of `deep` by `tiff.deepened`.
    """
    flat = np.ascontiguousarray(deep.astype("<u2")).view(np.uint8)
    height, width, channels = deep.shape
    array = flat.reshape(height, 2 * width, channels)
    return Image.fromarray(array[..., 0] if channels == 1 else array)
