"""Files that break decoders: the test images of Pillow, and small photos damaged in many ways."""

import importlib.metadata
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

Photo = tuple[str, bytes]


class NotToBeHad(Exception):
    """No source distribution of the installed Pillow; the message says why."""


def pillow_images(cache: Path) -> list[Photo]:
    """Every file of Pillow's Tests/images, hostile ones too: name and bytes, in order.

    pip fetches its source distribution from wherever it is set up to, checks its hash, and reads
    its metadata (some seconds; nothing is compiled). Later calls find it in `cache`.
    """
    version = importlib.metadata.version("pillow")
    archive = cache / f"pillow-{version}.tar.gz"
    if not archive.exists():
        _download(f"pillow=={version}", cache)
    photos = []
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            _, found, name = member.name.partition("/Tests/images/")
            if found and member.isfile():
                photos.append((name, members.extractfile(member).read()))  # type: ignore[union-attr]
    return sorted(photos)


def _download(requirement: str, folder: Path) -> None:
    options = ["--no-deps", "--no-binary", "pillow", "--quiet", "--retries", "1", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        raise NotToBeHad(f"pip download {requirement}: no answer in 180 s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotToBeHad(f"pip download {requirement}: {last}")


# ---------------------------------------------------------------------------- sound photos


def sound_photos() -> list[Photo]:
    """Small valid files of every format and mode that is taken, and some that are refused."""
    y, x = np.mgrid[0:24, 0:36]
    rgb = np.stack([40 + 5 * x, 30 + 8 * y, 200 - 2 * x - 2 * y], axis=-1).astype(np.uint8)
    photo = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    said = {"exif": exif, "icc_profile": profile}

    def more() -> dict:  # a new second frame each time: saving leaves its settings on it
        return {"save_all": True, "append_images": [photo.rotate(90)]}

    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    see_through = Image.fromarray(np.dstack([rgb, rgb[..., 0]]))
    made: list[tuple[str, Image.Image, str, dict]] = [
        ("plain.jpg", photo, "JPEG", {}),
        ("said.jpg", photo, "JPEG", said),
        ("progressive.jpg", photo, "JPEG", {"progressive": True, "subsampling": 0}),
        ("grey.jpg", photo.convert("L"), "JPEG", {}),
        ("cmyk.jpg", photo.convert("CMYK"), "JPEG", {}),
        ("two.mpo", photo, "MPO", more()),
        ("plain.png", photo, "PNG", said),
        ("alpha.png", see_through, "PNG", {}),
        ("palette.png", photo.quantize(32), "PNG", {"transparency": 3}),
        ("deep.png", deep, "PNG", {}),
        ("moving.png", photo, "PNG", more()),
        ("lossy.webp", photo, "WEBP", said),
        ("lossless.webp", see_through, "WEBP", {"lossless": True}),
        ("plain.bmp", photo, "BMP", {}),
        ("palette.bmp", photo.quantize(32), "BMP", {}),
        ("plain.tif", photo, "TIFF", said),
        ("deep.tif", deep, "TIFF", {"compression": "tiff_lzw"}),
        ("cmyk.tif", photo.convert("CMYK"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", photo, "TIFF", {"compression": "jpeg"}),
        ("fax.tif", photo.convert("1"), "TIFF", {"compression": "group4"}),
        ("float.tif", photo.convert("F"), "TIFF", {}),
        ("pages.tif", photo, "TIFF", more()),
    ]
    return [(name, _saved(image, kind, options)) for name, image, kind, options in made]


def _saved(image: Image.Image, kind: str, options: dict) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---------------------------------------------------------------------------- damage

Mutation = Callable[[np.random.Generator, bytes, bytes], bytes]
"""(draws, a file, another file) -> the first one, damaged."""

# Names in front of or behind a length or a size, in the formats that are taken.
_TAGS = re.compile(
    rb"IHDR|PLTE|IDAT|tRNS|iCCP|eXIf|acTL|fcTL|IEND|RIFF|WEBP|VP8[ LX]|EXIF|ICCP|BM|II\*\0|MM\0\*"
    rb"|\xff[\xc0-\xef]"
)
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _flipped(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    damaged = np.frombuffer(data, dtype=np.uint8).copy()
    where = draws.integers(0, len(damaged), draws.integers(1, 9))
    damaged[where] = draws.integers(0, 256, len(where))
    return damaged.tobytes()


def _header_flipped(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    return _flipped(draws, data[:64], other) + data[64:]


def _cut(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    return data[: draws.integers(0, len(data))]


def _spliced(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    return data[: draws.integers(0, len(data))] + other[draws.integers(0, len(other)) :]


def _length_changed(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """A number beside a tag becomes another one, in either byte order."""
    found = [match.span() for match in _TAGS.finditer(data)] or [(0, 4)]
    start, end = found[draws.integers(0, len(found))]
    width = (2, 4)[draws.integers(0, 2)]
    at = max(0, (start - width, end, end + 4)[draws.integers(0, 3)])
    value = _EXTREMES[draws.integers(0, len(_EXTREMES))] & ((1 << 8 * width) - 1)
    number = value.to_bytes(width, ("big", "little")[draws.integers(0, 2)])
    return data[:at] + number + data[at + width :]


def _header_swapped(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    size = draws.integers(2, 65)
    return other[:size] + data[size:]


MUTATIONS: tuple[Mutation, ...] = (
    _flipped,
    _header_flipped,
    _cut,
    _spliced,
    _length_changed,
    _header_swapped,
)


def mutated(photos: Sequence[Photo], count: int, seed: int) -> Iterator[Photo]:
    """`count` damaged files; number i depends on nothing but the photos, the seed and i."""
    for i in range(count):
        draws = np.random.default_rng([seed, i])
        name, data = photos[draws.integers(0, len(photos))]
        _, other = photos[draws.integers(0, len(photos))]
        mutation = MUTATIONS[i % len(MUTATIONS)]
        damaged = mutation(draws, data, other)
        if draws.integers(0, 2):
            damaged = _checksums_mended(damaged)
        yield f"{i:05d}-{mutation.__name__[1:]}-{name}", damaged


def _checksums_mended(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again: the damage then gets further."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(mended)
