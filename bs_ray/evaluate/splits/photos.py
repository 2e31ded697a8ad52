"""Photos of the user's own, as a split: listed, sampled by name, decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from bs_ray.config.base import MAX_PIXELS
from bs_ray.config.evaluate import PhotoSplit
from bs_ray.evaluate.splits import Item
from bs_ray.evaluate.splits.sources import Listed, PhotoSource, source_of
from bs_ray.images.decode import decode
from bs_ray.images.formats import EmptyInputError
from bs_ray.images.rows import is_quarantined
from bs_ray.tiny.photo.people import held_out, person_of


class Photos:
    """A sample of the photos at one place."""

    drawn = generates = False

    def __init__(
        self,
        source: PhotoSource,
        chosen: Sequence[Listed],
        pairs: Sequence[tuple[Listed, Listed]],
        seed: int,
        beside: Sequence[Listed] = (),
    ):
        """pairs: two photos each of some people, for the test of an identity judge. beside: photos
        of people that are not held out, where those are that are measured."""
        place = source.place
        self.title = f"Photos of {place if '://' in place else place.rpartition('/')[2]}"
        self._source, self._chosen, self._seed = source, list(chosen), seed
        self.pairs, self.beside = list(pairs), list(beside)
        content = "".join(f"{one.key}:{one.tag}\n" for one in chosen)
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._kept: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._chosen)

    def items(self, first: int, count: int) -> list[Item]:
        """See Split. The content of a file names its noise."""
        return self._items(self._chosen, first, count)

    def beside_items(self, first: int, count: int) -> list[Item]:
        """Photos `first` to `first + count` of those that lie beside what is measured."""
        return self._items(self.beside, first, count)

    def _items(self, listed: Sequence[Listed], first: int, count: int) -> list[Item]:
        items = [self._item(one, data) for one, data in self._read(listed[first : first + count])]
        return [replace(item, number=first + number) for number, item in enumerate(items)]

    def pair_items(self) -> list[tuple[Item, Item]]:
        """The pairs, decoded."""
        both = [one for pair in self.pairs for one in pair]
        items = [self._item(one, data) for one, data in self._read(both)]
        return list(zip(items[::2], items[1::2], strict=True))

    def _read(self, wanted: Sequence[Listed]) -> list[tuple[Listed, bytes | None]]:
        if not self._source.packed:
            found = self._source.read([one.key for one in wanted])
        else:  # a pass through the whole file, which is made once for all
            if not self._kept:
                pairs = (one for pair in self.pairs for one in pair)
                everything = [*self._chosen, *pairs, *self.beside]
                self._kept = self._source.read([one.key for one in everything])
            found = self._kept
        return [(one, found.get(one.key)) for one in wanted]

    def _item(self, one: Listed, data: bytes | None) -> Item:
        plain = Item(0, one.key, self._seed, identity=one.identity)
        if data is None:
            return replace(plain, problem="missing: it was there when the split was opened")
        row = decode(one.key, data, max_pixels=MAX_PIXELS)
        if is_quarantined(row):
            return replace(plain, problem=row["reason"])
        return replace(plain, key=row["sha256"], pixels=row["pixels"])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}


PAIRS = 50
"""At most so many people test an identity judge."""
BESIDE = 4
"""With so many photos of people that are not held out each generation of a base is compared."""


def open_photos(split: PhotoSplit, seed: int, base_images: int = 0) -> Photos:
    """base_images: of the job.

    Raises EmptyInputError where no photo lies, ValueError for held-out people among photos whose
    names do not tell people, DamagedArchiveError and StorageError.
    """
    source = source_of(split.photos)
    listed = sorted(source.list(), key=lambda one: _rank(one.key, seed))
    if not listed:
        raise EmptyInputError(
            f"photos: got {split.photos}, where no photo lies; expected a folder, an s3:// prefix, "
            "shards or an archive (.tgz, .tar.gz, .tar, .zip) with JPEG, PNG, WebP, BMP or TIFF. "
            "Check the place"
        )
    beside: list[Listed] = []
    if split.people == "held-out":
        held = set(_held_out(listed, split.photos))
        beside = [one for one in listed if one not in held][: BESIDE * base_images]
        listed = [one for one in listed if one in held]
    if not split.identities:
        listed = [replace(one, identity="") for one in listed]
        return Photos(source, listed[: split.count], [], seed, beside)
    of: dict[str, list[Listed]] = defaultdict(list)
    for one in listed:
        of[one.identity].append(one)
    several = [photos for photos in of.values() if len(photos) > 1]
    pairs = [(photos[0], photos[1]) for photos in several[:PAIRS]]
    chosen = [photos[0] for photos in of.values()][: split.count]
    return Photos(source, chosen, pairs, seed, beside)


def _held_out(listed: Sequence[Listed], place: str) -> list[Listed]:
    people = {one: person_of(one.key) for one in listed}
    if odd := next((one.key for one, person in people.items() if person is None), None):
        raise ValueError(
            f"people: got held-out for {place}, which has the photo {odd}; expected LFW's "
            "Name/Name_0001.jpg or UTKFace's AGE_GENDER_RACE_DATE.jpg, whose names say whom the "
            "embedded bases were trained on. Leave `people` out for other photos"
        )
    found = [one for one, person in people.items() if person and held_out(person)]
    if not found:
        raise EmptyInputError(
            f"people: got no held-out person among the {len(listed)} photos of {place}; expected "
            "more photos: one person in ten is held out"
        )
    return found


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()
