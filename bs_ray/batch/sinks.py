"""Where a shard's edited photos go: a file for each, or one tar or Parquet file for a shard.

A sink writes to keys that depend on the input alone, so a shard that is made twice is the same both
times. What an earlier generation wrote is never replaced. An output's place is its key below the
output prefix; within a packed file it is `file#member` (tar) or `file#row` (Parquet).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.rows import EditedRow, OutputRow
from bs_ray.datasets.shards import add_sample
from bs_ray.images.formats import SUFFIX_OF, SUFFIXES
from bs_ray.storage import Store

_REQUESTS = 8  # in flight at once, in each task, which mostly waits for the store

FILES, PACKED = "images/", "shards/"
"""Folders below the output prefix: of photos as files, and of packed files."""

PACKED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("edit", pa.string(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),  # the image file
        pa.field("provenance", pa.string(), nullable=False),  # JSON
    ]
)
"""Rows of a `parquet` sink's files; `bs-ray edit` reads them back with its default columns."""


@dataclass(frozen=True)
class EncodedPhoto:
    """One edited photo as a file, and what the file says of its making."""

    row: EditedRow
    data: bytes
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The photo's key, below its edit's folder where a job makes several edits."""
        key, edit = self.row["key"], self.row["edit"]
        key += "" if key.lower().endswith(SUFFIXES) else SUFFIX_OF[self.row["format"]]
        return f"{edit}/{key}" if edit else key

    def at(self, output: str) -> OutputRow:
        """The photo's row of the manifest, where it was written to `output`."""
        return OutputRow(
            key=self.row["key"],
            edit=self.row["edit"],
            sha256=self.row["sha256"],
            output=output,
            output_sha256=hashlib.sha256(self.data).hexdigest(),
            bytes=len(self.data),
            note=self.row["note"],
        )


Sink = Callable[[Store, int, int, Sequence[EncodedPhoto]], list[OutputRow]]
"""Of a store, a generation, its shard, and photos."""


def _write_images(
    output: Store, generation: int, shard: int, made: Sequence[EncodedPhoto]
) -> list[OutputRow]:
    def put(photo: EncodedPhoto) -> OutputRow:
        key, data = f"{FILES}{photo.name}", photo.data
        if generation == 1:
            output.write(key, data)
        elif not output.write_if_absent(key, data) and output.read(key) != data:
            key = f"{FILES.rstrip('/')}@{generation}/{photo.name}"
            output.write(key, data)
        return photo.at(key)

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(put, made))


def _packed(generation: int, shard: int) -> str:
    return f"{PACKED}{shard:05d}" if generation == 1 else f"{PACKED}{generation:04d}-{shard:05d}"


def _write_tar(
    output: Store, generation: int, shard: int, made: Sequence[EncodedPhoto]
) -> list[OutputRow]:
    key, file, rows = f"{_packed(generation, shard)}.tar", BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for photo in made:
            about = json.dumps(photo.provenance, sort_keys=True).encode()
            member = add_sample(archive, photo.name, photo.data, about)
            rows.append(photo.at(f"{key}#{member}"))
    output.write(key, file.getvalue())
    return rows


def _write_parquet(
    output: Store, generation: int, shard: int, made: Sequence[EncodedPhoto]
) -> list[OutputRow]:
    key, file = f"{_packed(generation, shard)}.parquet", BytesIO()
    table = pa.Table.from_pylist(
        [
            {
                "key": photo.name,
                "edit": photo.row["edit"],
                "bytes": photo.data,
                "provenance": json.dumps(photo.provenance, sort_keys=True),
            }
            for photo in made
        ],
        schema=PACKED_SCHEMA,
    )
    pq.write_table(table, file, compression="none")  # photos are compressed already
    output.write(key, file.getvalue())
    return [photo.at(f"{key}#{row}") for row, photo in enumerate(made)]


SINKS: dict[str, Sink] = {
    "images": _write_images,
    "webdataset": _write_tar,
    "parquet": _write_parquet,
}
"""A job's `sink` -> the function that writes a shard and returns its manifest rows in order."""


def split_place(place: str) -> tuple[str, str]:
    """(key of the file, member within it) of a place; member "" stands for the whole file."""
    if not place.startswith(PACKED):
        return place, ""  # a photo's own name may contain a #
    key, _, member = place.rpartition("#")
    return key, member


def read_output(output: Store, place: str) -> bytes:
    """The edited photo at a place. Raises StorageError, and KeyError for an unknown member."""
    key, member = split_place(place)
    if not member:
        return output.read(key)
    path = output.local_copy(key)
    if key.endswith(".tar"):
        with tarfile.open(path, "r:") as archive:
            return archive.extractfile(member).read()  # type: ignore[union-attr]
    return pq.read_table(path, columns=["bytes"])["bytes"][int(member)].as_py()
