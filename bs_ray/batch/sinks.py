"""Where a shard's edited photos go: files of their own, or one tar or Parquet file a shard.

A sink puts them at keys that depend on nothing but the input, so that a shard made twice is the
same twice. An output's place is its key below the output prefix; within a packed file,
`file#member` (tar) or `file#row` (Parquet).
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

from bs_ray.batch.listing import SUFFIXES
from bs_ray.batch.rows import EditedRow, OutputRow
from bs_ray.storage import Store

_REQUESTS = 8  # in flight at once, per task: a shard is mostly waiting for the store
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}

FILES, PACKED = "images/", "shards/"
"""Folders below the output prefix: of photos as files, and of packed ones."""

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
class Made:
    """One edited photo as a file, and what it says of its making."""

    row: EditedRow
    data: bytes
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """Its key, below its edit's folder where a job makes several."""
        key, edit = self.row["key"], self.row["edit"]
        key += "" if key.lower().endswith(SUFFIXES) else _SUFFIX[self.row["format"]]
        return f"{edit}/{key}" if edit else key

    def at(self, output: str) -> OutputRow:
        """Its line in the manifest, once it is written there."""
        return OutputRow(
            key=self.row["key"],
            edit=self.row["edit"],
            sha256=self.row["sha256"],
            output=output,
            output_sha256=hashlib.sha256(self.data).hexdigest(),
            bytes=len(self.data),
            note=self.row["note"],
        )


Sink = Callable[[Store, int, Sequence[Made]], list[OutputRow]]


def _write_images(output: Store, shard: int, made: Sequence[Made]) -> list[OutputRow]:
    def put(photo: Made) -> OutputRow:
        key = f"{FILES}{photo.name}"
        output.write(key, photo.data)
        return photo.at(key)

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(put, made))


def _write_tar(output: Store, shard: int, made: Sequence[Made]) -> list[OutputRow]:
    key, file, rows = f"{PACKED}{shard:05d}.tar", BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for photo in made:
            # A sample's name ends at its first dot, so that a name's own dots are spelt out.
            stem, _, suffix = photo.name.rpartition(".")
            sample = stem.replace(".", "%2E")
            told = json.dumps(photo.provenance, sort_keys=True).encode()
            _add(archive, f"{sample}.{suffix}", photo.data)
            _add(archive, f"{sample}.json", told)
            rows.append(photo.at(f"{key}#{sample}.{suffix}"))
    output.write(key, file.getvalue())
    return rows


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner 0, time 0: equal shards are equal bytes
    member.size = len(data)
    archive.addfile(member, BytesIO(data))


def _write_parquet(output: Store, shard: int, made: Sequence[Made]) -> list[OutputRow]:
    key, file = f"{PACKED}{shard:05d}.parquet", BytesIO()
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
    pq.write_table(table, file, compression="none")  # of what is compressed already
    output.write(key, file.getvalue())
    return [photo.at(f"{key}#{row}") for row, photo in enumerate(made)]


SINKS: dict[str, Sink] = {
    "images": _write_images,
    "webdataset": _write_tar,
    "parquet": _write_parquet,
}
"""By a job's `sink`: write a shard, return its rows of the manifest in order."""


def split_place(place: str) -> tuple[str, str]:
    """(key of the file, member within it) of a place that a sink gave; no member is all of it."""
    if not place.startswith(PACKED):
        return place, ""  # a photo's own name may have a #
    key, _, member = place.rpartition("#")
    return key, member


def read_output(output: Store, place: str) -> bytes:
    """The edited photo at a place that a sink gave. Raises StorageError, KeyError."""
    key, member = split_place(place)
    if not member:
        return output.read(key)
    path = output.local_copy(key)
    if key.endswith(".tar"):
        with tarfile.open(path, "r:") as archive:
            return archive.extractfile(member).read()  # type: ignore[union-attr]
    return pq.read_table(path, columns=["bytes"])["bytes"][int(member)].as_py()
