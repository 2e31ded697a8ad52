"""TIFF's directories of tags, which hold a TIFF's pixels and everybody's EXIF.

Read here without Pillow, whose reader stops at the first tag that is wrong: what makes the pixels
and what only describes them are told apart before anything is decoded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ORIENTATION, XMP, IPTC, PHOTOSHOP, ICC = 274, 700, 33723, 34377, 34675
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Type of a tag's values -> bytes of one."""
_INCH, _CENTIMETRE = 2, 3

# What the pixels are made of: sizes, coding, places of strips and tiles, colours, JPEG's tables.
_PIXEL_TAGS = {
    *range(254, 260), 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322,
    323, 324, 325, 332, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532,
}  # fmt: skip


@dataclass(frozen=True)
class Tag:
    """An entry of a directory."""

    entry: bytes
    """Its 12 bytes, as they are."""
    kind: int
    """The type of its values, as TIFF numbers them."""
    count: int
    """How many values it has; of text, characters."""
    data: bytes | None
    """Its values' bytes; None where they lie outside the file or are of no known type."""


@dataclass(frozen=True)
class Directory:
    """A directory's tags, by number."""

    order: str
    """Byte order, "<" or ">"."""
    tags: dict[int, Tag]
    next: int
    """Where the next directory begins; 0 where there is none."""

    def number(self, tag: int) -> int | None:
        """The first value of a tag of small whole numbers; None where it has none."""
        found = self.tags.get(tag)
        letter = {1: "B", 3: "H", 4: "I"}.get(found.kind) if found else None
        if not found or not letter or not found.data:
            return None
        return struct.unpack_from(self.order + letter, found.data)[0]

    def data(self, tag: int) -> bytes:
        """The bytes of a tag's values; b"" where it has none."""
        found = self.tags.get(tag)
        return (found.data or b"") if found else b""

    def dpi(self) -> tuple[float, float] | None:
        """Pixels an inch, across and down; None where that is not said."""
        unit = self.number(RESOLUTION_UNIT)
        per_inch = {None: 1.0, _INCH: 1.0, _CENTIMETRE: 2.54}.get(unit)
        found = [self._ratio(tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
        if per_inch is None or not all(found):
            return None
        return found[0] * per_inch, found[1] * per_inch

    def _ratio(self, tag: int) -> float:
        data = self.data(tag)
        above, below = struct.unpack_from(self.order + "II", data) if len(data) >= 8 else (0, 0)
        return above / below if below else 0.0


def read_directory(block: bytes) -> Directory:
    """The first directory of a TIFF file or of an EXIF block without its "Exif" in front.

    Raises ValueError where there is none to be read.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise ValueError("no TIFF header")
    try:
        [at] = struct.unpack_from(order + "I", block, 4)
        [count] = struct.unpack_from(order + "H", block, at)
        end = at + 2 + 12 * count
        entries = [block[i : i + 12] for i in range(at + 2, end, 12)]
        following = struct.unpack_from(order + "I", block, end)[0] if end + 4 <= len(block) else 0
        tags = dict(_tag(block, order, entry) for entry in entries)
    except struct.error:
        raise ValueError("its directory of tags lies outside of it") from None
    return Directory(order, tags, following)


def _tag(block: bytes, order: str, entry: bytes) -> tuple[int, Tag]:
    number, kind, count = struct.unpack_from(order + "HHI", entry)
    size = _SIZES.get(kind, 0) * count
    [at] = struct.unpack_from(order + "I", entry, 8)
    data = entry[8 : 8 + size] if size <= 4 else block[at : at + size]
    return number, Tag(entry, kind, count, data if kind in _SIZES and len(data) == size else None)


def pixels_only(data: bytes, directory: Directory) -> bytes:
    """The same TIFF with a directory that has no tags but those which the pixels need."""
    kept = [directory.tags[n].entry for n in sorted(directory.tags) if n in _PIXEL_TAGS]
    order, place = directory.order, len(data) + len(data) % 2
    new = struct.pack(order + "H", len(kept)) + b"".join(kept)
    new += struct.pack(order + "I", directory.next)
    return data[:4] + struct.pack(order + "I", place) + data[8:].ljust(place - 8, b"\0") + new


def is_pixel_tag(number: int) -> bool:
    """Whether a tag belongs to the pixels, so that another file has its own."""
    return number in _PIXEL_TAGS


def deepened(data: bytes) -> bytes:
    """An uncompressed TIFF of 8 bits and twice the width as the one of 16 bits that its bytes are.

    Pillow writes 16 bits for one channel only; the samples of `data` are the halves of those to be
    written, in the file's byte order.
    """
    directory, made = read_directory(data), bytearray(data)
    order = directory.order
    for number, value in ((256, None), (258, 16)):  # ImageWidth, BitsPerSample
        tag = directory.tags[number]
        letter = {3: "H", 4: "I"}[tag.kind]
        size = struct.calcsize(letter)
        entry = data.index(tag.entry, struct.unpack_from(order + "I", data, 4)[0])
        count = tag.count
        inside = count * size <= 4
        at = entry + 8 if inside else struct.unpack_from(order + "I", tag.entry, 8)[0]
        for i in range(at, at + count * size, size):
            [before] = struct.unpack_from(order + letter, data, i)
            struct.pack_into(order + letter, made, i, value or before // 2)
    return bytes(made)
