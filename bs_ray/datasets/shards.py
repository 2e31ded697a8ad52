"""Shards of training photos in two formats: Parquet files, or tars by WebDataset's conventions.

A shard is one object, `shard-00000.parquet` or `shard-00000.tar`, whose metadata says how many
photos a shard has. Equal photos give equal bytes.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.storage import Store

PHOTO_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # such as Name_Name/Name_Name_0001.jpg
        pa.field("identity", pa.string(), nullable=False),  # such as Name_Name; "" for unknown
        pa.field("bytes", pa.binary(), nullable=False),  # the image file
    ]
)
"""A row of a shard."""

_SHARD = re.compile(r"shard-\d{5}\.(parquet|tar)")
_META = b"bs_ray"
_META_MEMBER = "__bs_ray__"  # readers of WebDataset skip names with such underscores
_BATCH_ROWS = 256

Row = dict[str, Any]
"""A row of PHOTO_SCHEMA."""


@dataclass(frozen=True)
class ShardFormat:
    """How a shard is written and read."""

    suffix: str
    write: Callable[[Sequence[Row], Row], bytes]
    """(rows, meta) -> the file."""
    meta: Callable[[bytes], Row]
    """The file -> its meta."""
    batches: Callable[[bytes], Iterator[pa.RecordBatch]]
    """The file -> its rows, a few hundred at a time."""

    def key(self, shard: int) -> str:
        """The name of a shard below its prefix."""
        return f"shard-{shard:05d}{self.suffix}"


def shard_keys(store: Store) -> list[str]:
    """The keys of the shards right below a prefix, in order."""
    return [entry.key for entry in store.list("shard-") if _SHARD.fullmatch(entry.key)]


def format_of(key: str) -> ShardFormat:
    """The format of a file by its suffix: tar, and Parquet for everything else."""
    return FORMATS["webdataset" if key.endswith(".tar") else "parquet"]


# ---------------------------------------------------------------------------- Parquet


def _write_parquet(rows: Sequence[Row], meta: Row) -> bytes:
    schema = PHOTO_SCHEMA.with_metadata({_META: json.dumps(meta).encode()})
    file = BytesIO()
    # Small groups, since readers stream them.
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, row_group_size=100)
    return file.getvalue()


def _parquet_meta(data: bytes) -> Row:
    return json.loads(pq.read_schema(BytesIO(data)).metadata[_META])


def _parquet_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(BytesIO(data)).iter_batches(_BATCH_ROWS)


# ---------------------------------------------------------------------------- WebDataset


def _write_tar(rows: Sequence[Row], meta: Row) -> bytes:
    """One sample for each photo: `<key>.jpg`, and `<key>.json` with key and identity."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, _META_MEMBER, json.dumps(meta).encode())
        for row in rows:
            about = json.dumps({"key": row["key"], "identity": row["identity"]}).encode()
            add_sample(tar, row["key"], row["bytes"], about)
    return file.getvalue()


def add_sample(tar: tarfile.TarFile, name: str, data: bytes, about: bytes) -> str:
    """Add a photo and its .json to a tar as one WebDataset sample. Returns the photo's member name.

    A sample's name ends at its first dot, so other dots in the photo's name are written as %2E.
    """
    stem, _, suffix = name.rpartition(".")
    sample = stem.replace(".", "%2E")
    _add(tar, f"{sample}.{suffix}", data)
    _add(tar, f"{sample}.json", about)
    return f"{sample}.{suffix}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner 0 and time 0, so that equal shards are equal bytes
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _tar_meta(data: bytes) -> Row:
    name, content = next(_members(data))
    assert name == _META_MEMBER, name
    return json.loads(content)


def _tar_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    _, *members = _members(data)
    images, texts = members[::2], members[1::2]  # in the order of `add_sample`
    rows = [
        {**json.loads(text), "bytes": image}
        for (_, image), (_, text) in zip(images, texts, strict=True)
    ]
    for first in range(0, len(rows), _BATCH_ROWS):
        yield pa.RecordBatch.from_pylist(rows[first : first + _BATCH_ROWS], schema=PHOTO_SCHEMA)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=BytesIO(data), mode="r:") as tar:
        for member in tar:
            yield member.name, tar.extractfile(member).read()  # type: ignore[union-attr]


FORMATS = {
    "parquet": ShardFormat(".parquet", _write_parquet, _parquet_meta, _parquet_batches),
    "webdataset": ShardFormat(".tar", _write_tar, _tar_meta, _tar_batches),
}
"""Name of a format, as `bs-ray ingest --format` takes it -> the format."""
