"""EXIF, tag by tag: one that is damaged costs itself, never the others or the photo's direction."""

from __future__ import annotations

from collections.abc import Callable

from PIL import ExifTags, Image, TiffTags

from bs_ray.images import tiff

MAX_BYTES = 60_000
"""A JPEG holds 64 kB, our own comment among them."""
USER_COMMENT, EXIF_DIRECTORY, GPS_DIRECTORY = 0x9286, 0x8769, 0x8825
_MAKER_NOTE, _INTEROP = 0x927C, 0xA005
_MAX_COMMENT = 4000
_POINTERS = (EXIF_DIRECTORY, GPS_DIRECTORY)
# In a TIFF one directory holds the tags of the photo and those of its storage. These are the
# photo's that are nobody else's.
_DESCRIPTIVE_TAGS = {270, 271, 272, 305, 306, 315, 316, 33432}
_NUMBERS = {TiffTags.SHORT, TiffTags.LONG, TiffTags.RATIONAL, TiffTags.SIGNED_RATIONAL}
_ELSEWHERE = {
    tiff.ORIENTATION, tiff.XMP, tiff.IPTC, tiff.PHOTOSHOP, tiff.ICC, tiff.X_RESOLUTION,
    tiff.Y_RESOLUTION, tiff.RESOLUTION_UNIT,
}  # fmt: skip


def orientation(block: bytes) -> int:
    """How to turn the photo, 1 to 8; 1 where nothing sensible is said."""
    try:
        found = tiff.read_directory(block).number(tiff.ORIENTATION)
    except ValueError:
        return 1
    return found if found is not None and 1 <= found <= 8 else 1


def kept_exif(block: bytes, of_tiff: bool = False) -> tuple[bytes, list[str]]:
    """(the block without orientation, thumbnail and damaged tags; a note for each of those).

    of_tiff: the block is a TIFF file, whose own tags are not the photo's.
    """
    try:
        directory = tiff.read_directory(block)
        source = Image.Exif()
        source.load(block)
    except Exception as error:  # Pillow's reader raises many types
        return b"", [f"EXIF dropped: {str(error)[:80] or type(error).__name__}"]
    kept, lost = Image.Exif(), list[str]()
    wanted = [tag for tag in directory.tags if _is_wanted(tag, of_tiff, lost)]
    for tag in sorted(wanted):
        if _is_single(tag) and directory.tags[tag].count != 1:  # Pillow would take the first
            lost.append(f"EXIF {_name(tag)}")
        else:
            _take(tag, source.__getitem__, kept.__setitem__, lost)
    for pointer in _POINTERS:
        if pointer in directory.tags:
            _take_directory(pointer, source, kept, lost)
    return _in_limits(kept, lost)


def _is_wanted(tag: int, of_tiff: bool, lost: list[str]) -> bool:
    if tag in _POINTERS or tag == tiff.ORIENTATION:
        return False
    if not of_tiff:
        return True
    if tag in _DESCRIPTIVE_TAGS:
        return True
    if not tiff.is_pixel_tag(tag) and tag not in _ELSEWHERE:
        lost.append(f"TIFF tag {_name(tag)}")
    return False


def _is_single(tag: int) -> bool:
    """Whether the standard gives a tag one number."""
    standard = TiffTags.lookup(tag)
    return standard.length == 1 and standard.type in _NUMBERS


def _take(
    tag: int,
    read: Callable[[int], object],
    write: Callable[[int, object], None],
    lost: list[str],
    pointer: int | None = None,
) -> None:
    """Keep one tag, if it can be read and written."""
    try:
        value = read(tag)
        alone = Image.Exif()
        (alone.get_ifd(pointer) if pointer else alone)[tag] = value
        alone.tobytes()
        write(tag, value)
    except Exception:  # whatever is wrong with it is this tag's own
        lost.append(f"EXIF {_name(tag, pointer)}")


def _take_directory(pointer: int, source: Image.Exif, kept: Image.Exif, lost: list[str]) -> None:
    try:
        values = dict(source.get_ifd(pointer))
    except Exception:
        values = {}
    if not values:
        lost.append(f"EXIF {_name(pointer)}")
        return
    if _INTEROP in values and not isinstance(values[_INTEROP], dict):
        values.pop(_INTEROP)  # a place in the old block; it says how thumbnails are stored
    if len(values.get(USER_COMMENT, b"")) > _MAX_COMMENT:
        values.pop(USER_COMMENT)
        lost.append("EXIF UserComment")
    for tag in values:
        _take(tag, values.__getitem__, kept.get_ifd(pointer).__setitem__, lost, pointer)


def _in_limits(kept: Image.Exif, lost: list[str]) -> tuple[bytes, list[str]]:
    """The block as bytes. Where it is too long the camera's own notes go first, then all."""
    data = _bytes(kept)
    if len(data) > MAX_BYTES and kept.get_ifd(EXIF_DIRECTORY).pop(_MAKER_NOTE, None):
        lost.append("EXIF MakerNote")
        data = _bytes(kept)
    if len(data) > MAX_BYTES:
        return b"", [f"EXIF dropped: {len(data)} bytes, expected at most {MAX_BYTES}"]
    return data, [f"{', '.join(dict.fromkeys(lost))} dropped"] if lost else []


def _bytes(kept: Image.Exif) -> bytes:
    return kept.tobytes() if len(kept) or any(map(kept.get_ifd, _POINTERS)) else b""


def _name(tag: int, pointer: int | None = None) -> str:
    names = ExifTags.GPSTAGS if pointer == GPS_DIRECTORY else ExifTags.TAGS
    return names.get(tag, f"0x{tag:04x}")
