"""Labeled Faces in the Wild, from its archive or folder, as Parquet shards for training.

Other photos of people fit as well where they are laid out like LFW: Name_Name/Name_Name_0001.jpg.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.data import PHOTO_SCHEMA, EmptyInputError, QuarantinedRow, is_quarantined
from bs_ray.data.decode import decode
from bs_ray.storage import Store, split_uri

_PHOTO = re.compile(r"(?:.*/)?(([^/]+)/\2_\d{4,}\.jpe?g)")
_SHARD = re.compile(r"shard-\d{5}\.parquet")
_META = b"bs_ray"
_MAX_PIXELS = 64_000_000

Photo = tuple[str, Callable[[], bytes]]
"""A key (Name_Name/Name_Name_0001.jpg) and how to read it."""


class DamagedArchiveError(ValueError):
    """The archive ends early or is none."""


class ShardsChangedError(ValueError):
    """The destination holds shards that were cut otherwise."""


@dataclass(frozen=True)
class IngestSummary:
    """What a destination holds."""

    photos: int
    identities: int
    shards: int
    skipped: list[QuarantinedRow]
    """Broken files, with reasons; they are in no shard."""

    def __str__(self) -> str:
        text = f"{self.photos} photos of {self.identities} people in {self.shards} shards"
        broken = [f"  {row['key']}: {row['reason']}" for row in self.skipped]
        return "\n".join([f"{text}; {len(broken)} broken files skipped", *broken])


def ingest_lfw(source: str, destination: str, shard_images: int = 1000) -> IngestSummary:
    """Pack LFW into `<destination>/shard-00000.parquet` ... (PHOTO_SCHEMA). Resumes.

    source: the extracted folder (local or s3://), or the archive (.tgz, .tar.gz or .tar), which
    is read as a stream. Raises EmptyInputError for a source without LFW's file names,
    DamagedArchiveError, ShardsChangedError and StorageError.
    """
    Store(destination).check(write=True)
    archive = source.endswith((".tgz", ".tar.gz", ".tar"))
    photos = _archive_photos(source) if archive else _folder_photos(source)
    try:
        summary = write_shards(Store(destination), photos, shard_images)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DamagedArchiveError(
            f"{source}: got a damaged archive ({error}); expected a whole one. Fetch it again; the "
            "shards written so far are kept"
        ) from error
    if not summary.shards:
        raise EmptyInputError(
            f"{source}: got no file named like Name_Name/Name_Name_0001.jpg; expected LFW's "
            "layout. Give the extracted folder or the archive"
        )
    return summary


def write_shards(store: Store, photos: Iterator[Photo], shard_images: int) -> IngestSummary:
    """Write photos as shards of `shard_images` files each; shards that are there are kept.

    `photos` must come in the same order each time. Raises ShardsChangedError where the
    destination's shards were cut to another size.
    """
    _check_cut(store, shard_images)
    present = set(shard_keys(store))
    shard, count = 0, 0
    rows: list[dict[str, Any]] = []
    skipped: list[QuarantinedRow] = []
    for count, (key, read) in enumerate(photos, start=1):
        if _shard_key(shard) not in present:
            _take(key, read(), rows, skipped)
        if count % shard_images == 0:
            _write_shard(store, shard, rows, skipped, shard_images)
            shard, rows, skipped = shard + 1, [], []
    if count % shard_images:
        _write_shard(store, shard, rows, skipped, shard_images)
    return read_summary(store)


def read_summary(store: Store) -> IngestSummary:
    """What the shards below a prefix hold, from the shards themselves."""
    photos, identities, skipped = 0, set(), []
    keys = shard_keys(store)
    for key in keys:
        table = pq.read_table(store.local_copy(key), columns=["identity"])
        photos += len(table)
        identities |= set(table["identity"].to_pylist())
        skipped += json.loads(table.schema.metadata[_META])["skipped"]
    return IngestSummary(photos, len(identities), len(keys), skipped)


def shard_keys(store: Store) -> list[str]:
    """The keys of the shards right below a prefix, in order."""
    return [entry.key for entry in store.list("shard-") if _SHARD.fullmatch(entry.key)]


def _shard_key(shard: int) -> str:
    return f"shard-{shard:05d}.parquet"


def _take(key: str, data: bytes, rows: list[dict[str, Any]], skipped: list[QuarantinedRow]) -> None:
    """Sort one file into rows or skipped."""
    found = decode(key, data, max_pixels=_MAX_PIXELS)
    if is_quarantined(found):
        skipped.append(found)
    else:
        rows.append({"key": key, "identity": key.rpartition("/")[0], "bytes": data})


def _write_shard(
    store: Store,
    shard: int,
    rows: list[dict[str, Any]],
    skipped: list[QuarantinedRow],
    shard_images: int,
) -> None:
    meta = json.dumps({"shard_images": shard_images, "skipped": skipped}).encode()
    table = pa.Table.from_pylist(rows, schema=PHOTO_SCHEMA.with_metadata({_META: meta}))
    file = BytesIO()
    pq.write_table(table, file, row_group_size=100)  # readers stream row groups
    store.write_if_absent(_shard_key(shard), file.getvalue())


def _check_cut(store: Store, shard_images: int) -> None:
    for key in shard_keys(store)[:1]:
        meta = json.loads(pq.read_schema(store.local_copy(key)).metadata[_META])
        if meta["shard_images"] != shard_images:
            raise ShardsChangedError(
                f"{store.uri}: got shard_images {shard_images}; expected {meta['shard_images']}, "
                "which its shards were cut to. Keep that, or choose another destination"
            )


def _folder_photos(source: str) -> Iterator[Photo]:
    store = Store(source)
    store.check()
    for entry in store.list():
        if match := _PHOTO.fullmatch(entry.key):
            yield match[1], partial(store.read, entry.key)


def _archive_photos(source: str) -> Iterator[Photo]:
    store, key = split_uri(source)
    with tarfile.open(store.local_copy(key), "r|*") as archive:
        for member in archive:
            match = _PHOTO.fullmatch(member.name)
            if match and member.isfile():
                yield match[1], partial(_read_member, archive, member)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file has content
    return file.read()
