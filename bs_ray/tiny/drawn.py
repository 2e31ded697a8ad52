"""Photos of the tiny world as a user would have them: a messy folder, and shards like LFW's.

`wild/` holds in-the-wild photos, some of them broken as files may break; `lfw/` holds pictures of
named people for training. Everything is a function of the seed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from bs_ray.datasets.ingest import IngestSummary, write_shards
from bs_ray.datasets.pictures import Photo
from bs_ray.storage import Store
from bs_ray.tiny.faces import Scene, render_wild, same_person, sample_scenes

_SIDES_PX = (64, 64, 96, 128)
_UPRIGHT, _LYING = 1, 6
_FIRST = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Finn", "Gita", "Hugo", "Iris", "Jonas", "Kira")
_SYLLABLES = ("ba", "den", "ko", "lin", "mar", "no", "ris", "sol", "ta", "vi", "wen", "zu")


@dataclass(frozen=True)
class TinyWorld:
    """What was written."""

    wild: int
    """Files below wild/, the broken ones included."""
    broken: int
    lfw: IngestSummary

    def __str__(self) -> str:
        return f"wild/: {self.wild} photos, {self.broken} of them broken; lfw/: {self.lfw}"


def ingest_tiny_world(
    destination: str,
    photos: int = 500,
    people: int = 200,
    broken: int = 10,
    seed: int = 0,
    shard_images: int = 1000,
) -> TinyWorld:
    """Write `photos` files below `<destination>/wild`, `broken` of them broken, and 1 to 3 pictures
    of each of `people` below `<destination>/lfw`.

    Raises ValueError for more broken files than photos, and StorageError.
    """
    if broken > photos:
        raise ValueError(f"broken: got {broken} of {photos} photos; expected at most all of them")
    store = Store(destination)
    store.check(write=True)
    with ThreadPoolExecutor(2) as pool:
        wild = pool.submit(write_wild, store.join("wild"), photos, broken, seed)
        lfw = pool.submit(write_shards, store.join("lfw"), _portraits(people, seed), shard_images)
    wild.result()
    return TinyWorld(photos, broken, lfw.result())


def write_wild(store: Store, photos: int, broken: int, seed: int) -> None:
    """In-the-wild photos in nested folders, sides of 64 to 128 px, with a camera's EXIF."""
    images = _uint8(render_wild(sample_scenes(photos, seed), seed))
    bad = {(2 * i + 1) * photos // (2 * broken): i for i in range(broken)}  # evenly spread

    def put(index: int) -> None:
        data = wild_jpeg(images[index], index)
        if index in bad:
            data = BREAKAGES[bad[index] % len(BREAKAGES)](data)
        store.write(wild_key(index), data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(photos)))


def wild_key(index: int) -> str:
    """The key of photo `index`: year/month/img-00012.jpg, with twenty photos a month."""
    month = index // 20
    return f"{2022 + month // 12}/{month % 12 + 1:02d}/img-{index:05d}.jpg"


def wild_jpeg(image: np.ndarray, index: int) -> bytes:
    """A camera's file: uint8 [64, 64, 3] -> JPEG of quality 92. Some photos lie on their side."""
    side = _SIDES_PX[index % len(_SIDES_PX)]
    orientation = _LYING if index % 8 == 5 else _UPRIGHT
    photo = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    if orientation == _LYING:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "bs_ray", "tiny world"
    exif[0x0112] = orientation
    exif[0x0132] = f"2024:01:01 {index // 3600 % 24:02d}:{index // 60 % 60:02d}:{index % 60:02d}"
    file = BytesIO()
    photo.save(file, "JPEG", quality=92, exif=exif)
    return file.getvalue()


def _huge_png(_: bytes) -> bytes:
    """A small file whose header promises 10 gigapixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def _gif(data: bytes) -> bytes:
    """A GIF, which is not edited, under the suffix of a JPEG."""
    file = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.quantize(64).save(file, "GIF")
    return file.getvalue()


BREAKAGES = (
    lambda data: data[: len(data) * 6 // 10],  # an upload that stopped
    lambda data: b"<html><body>404 Not Found</body></html>\n",  # a download that failed
    lambda data: b"",
    _huge_png,
    _gif,
)
"""The ways in which photos break: a JPEG's bytes -> the bytes of the file instead."""


def _portraits(people: int, seed: int) -> Iterator[Photo]:
    """Pictures of people, in the order of their numbers: person i has 1 + i % 3 of them."""
    faces = sample_scenes(people, seed + 1)
    for start in range(0, people, 64):
        chunk = {name: column[start : start + 64] for name, column in faces.items()}
        yield from _chunk_portraits(chunk, start, seed)


def _chunk_portraits(faces: Scene, start: int, seed: int) -> Iterator[Photo]:
    count = len(faces["man"])
    takes = [same_person(faces, seed + 1000 + 3 * start + take) for take in range(3)]
    shots = [_uint8(render_wild(take, seed + 2000 + 3 * start + i)) for i, take in enumerate(takes)]
    for person in range(count):
        name = person_name(start + person)
        for take in range(1 + (start + person) % 3):
            key = f"{name}/{name}_{take + 1:04d}.jpg"
            yield key, partial(_jpeg, shots[take][person])


def person_name(index: int) -> str:
    """First_Last; the first 19,008 people have different names."""
    rest, first = divmod(index, len(_FIRST))
    last = ""
    for _ in range(3):
        rest, syllable = divmod(rest, len(_SYLLABLES))
        last += _SYLLABLES[syllable]
    return f"{_FIRST[first]}_{last.capitalize()}"


def _jpeg(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    return file.getvalue()


def _uint8(images: torch.Tensor) -> np.ndarray:
    """[-1, 1] [B, 3, 64, 64] -> uint8 [B, 64, 64, 3]."""
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
