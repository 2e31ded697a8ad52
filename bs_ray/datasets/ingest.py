"""Photos to train on, from any folder or archive of pictures, as shards.

Photos laid out like Labeled Faces in the Wild (Name_Name/Name_Name_0001.jpg) bring identities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bs_ray.config.base import MAX_PIXELS
from bs_ray.datasets.pictures import (
    DAMAGE,
    Identities,
    Photo,
    UnreadableError,
    identity_of,
    pictures_in,
)
from bs_ray.datasets.shards import FORMATS, Row, ShardFormat, format_of, shard_keys
from bs_ray.images.decode import decode
from bs_ray.images.formats import EmptyInputError
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.progress import counted
from bs_ray.storage import Store


class DamagedArchiveError(ValueError):
    """The file ends early, or is no archive."""


class ShardsChangedError(ValueError):
    """The destination holds shards of another size or format."""


@dataclass(frozen=True)
class IngestSummary:
    """What a destination holds."""

    photos: int
    identities: int
    shards: int
    skipped: list[QuarantinedRow]
    """Broken files, which are in no shard, with their reasons."""

    def __str__(self) -> str:
        who = "1 person" if self.identities == 1 else f"{self.identities:,} people"
        people = f" of {who}" if self.identities else ""
        text = f"{counted(self.photos, 'photo')}{people} in {counted(self.shards, 'shard')}"
        broken = [f"  {row['key']}: {row['reason']}" for row in self.skipped]
        skipped = f"; {counted(len(broken), 'broken file')} skipped" if broken else ""
        return "\n".join([text + skipped, *broken])


def ingest_photos(
    source: str,
    destination: str,
    shard_images: int = 1000,
    format: str = "parquet",
    identities: Identities = "auto",
) -> IngestSummary:
    """Pack pictures into shards below `destination`, as `write_shards` does. A second call resumes.

    source: a folder (local or s3://), or an archive, see `pictures.ARCHIVES`; a tar is read as a
    stream. Raises ValueError for an unknown format, EmptyInputError for a source without pictures,
    DamagedArchiveError, ShardsChangedError and StorageError.
    """
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}; expected one of {', '.join(FORMATS)}")
    store = Store(destination)
    store.check(write=True)
    try:
        summary = write_shards(store, pictures_in(source), shard_images, format, identities)
    except DAMAGE as error:
        raise DamagedArchiveError(
            f"{source}: got a damaged archive ({error}); expected a whole one. Fetch it again; the "
            "shards written so far are kept"
        ) from error
    if not summary.shards:
        raise EmptyInputError(
            f"{source}: got no picture; expected a folder of photos, or an archive of them (.zip, "
            ".tar, .tgz)"
        )
    return summary


def write_shards(
    store: Store,
    photos: Iterator[Photo],
    shard_images: int,
    format: str = "parquet",
    identities: Identities = "auto",
) -> IngestSummary:
    """Write photos as shards of `shard_images` files each; shards that exist already are kept.

    format: "parquet" (rows of PHOTO_SCHEMA) or "webdataset" (tars of `<key>.jpg` and `<key>.json`).
    `photos` must come in the same order each time. Raises ShardsChangedError where the
    destination's shards have another size or format.
    """
    kind = FORMATS[format]
    _check_cut(store, shard_images, kind)
    present = set(shard_keys(store))
    shard, count = 0, 0
    rows: list[Row] = []
    skipped: list[QuarantinedRow] = []

    def write() -> None:
        meta = {"shard_images": shard_images, "skipped": skipped}
        store.write_if_absent(kind.key(shard), kind.write(rows, meta))

    for count, (key, read) in enumerate(photos, start=1):
        if kind.key(shard) not in present:
            _take((key, read), identities, rows, skipped)
        if count % shard_images == 0:
            write()
            shard, rows, skipped = shard + 1, [], []
    if count % shard_images:
        write()
    return read_summary(store)


def read_summary(store: Store) -> IngestSummary:
    """What the shards below a prefix hold, read from the shards themselves."""
    photos, identities, skipped = 0, set(), []
    keys = shard_keys(store)
    for key in keys:
        kind, data = format_of(key), store.local_copy(key).read_bytes()
        for batch in kind.batches(data):
            photos += len(batch)
            identities |= set(batch["identity"].to_pylist()) - {""}
        skipped += kind.meta(data)["skipped"]
    return IngestSummary(photos, len(identities), len(keys), skipped)


def _take(
    photo: Photo, identities: Identities, rows: list[Row], skipped: list[QuarantinedRow]
) -> None:
    """Put one file into `rows`, or into `skipped` where it is broken."""
    key, read = photo
    try:
        data = read()
    except UnreadableError as error:
        skipped.append(quarantined(key, "fetch", str(error)))
        return
    found = decode(key, data, max_pixels=MAX_PIXELS)
    if is_quarantined(found):
        skipped.append(found)
    else:
        rows.append({"key": key, "identity": identity_of(key, identities), "bytes": data})


def _check_cut(store: Store, shard_images: int, kind: ShardFormat) -> None:
    for key in shard_keys(store)[:1]:
        cut = format_of(key).meta(store.local_copy(key).read_bytes())["shard_images"]
        got, expected = (shard_images, kind.suffix), (cut, format_of(key).suffix)
        if got != expected:
            raise ShardsChangedError(
                f"{store.uri}: got shard_images {got[0]} as {got[1]}; expected {expected[0]} as "
                f"{expected[1]}, as its shards are. Keep that, or choose another destination"
            )
