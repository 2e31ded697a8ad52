"""Read the bytes of listed photos: objects of their own, members of tars, rows of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.columns import picture_in
from bs_ray.batch.external_sort import UNREADABLE
from bs_ray.batch.packed import UNKNOWN_SIZE
from bs_ray.batch.rows import ImageRow
from bs_ray.batch.survey import SUFFIXES_OF
from bs_ray.images.rows import QuarantinedRow, quarantined
from bs_ray.storage import (
    AccessError,
    MissingBucketError,
    MissingKeyError,
    StorageError,
    Store,
    UnreachableError,
)

_READERS = 8  # threads, since reading is waiting
_CELLS = 64  # rows of a Parquet file in memory at once


def fetch_all(
    source: Store, rows: Sequence[ImageRow], image_column: str, max_bytes: int
) -> list[bytes | QuarantinedRow]:
    """The bytes of some photos, in order. An error that is one photo's own quarantines it.

    image_column: the column of Parquet files that holds the image. Raises StorageError when the
    store itself does not answer, or no longer grants access: then every photo would fail, and the
    same command can succeed later.
    """
    wanted: dict[str, list[int]] = {}
    for row in rows:
        if row["file"].lower().endswith(SUFFIXES_OF["parquet"]):
            wanted.setdefault(row["file"], []).append(row["at"])
    cells = {file: _Cells(source, file, at, image_column) for file, at in wanted.items()}
    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(lambda row: _fetch(source, row, max_bytes, cells), rows))


def _fetch(
    source: Store, row: ImageRow, max_bytes: int, cells: dict[str, _Cells]
) -> bytes | QuarantinedRow:
    def refused(reason: str) -> QuarantinedRow:
        return quarantined(row["key"], "fetch", reason)

    def too_large(size: int) -> QuarantinedRow:
        return refused(f"too large: got {size} bytes; expected at most {max_bytes} (max_bytes)")

    if row["size"] == UNREADABLE:
        return refused(row["etag"])
    if row["size"] > max_bytes:
        return too_large(row["size"])
    try:
        data = _read(source, row, cells)
    except MissingKeyError:
        return refused("missing: it was there when the input was listed")
    except (UnreachableError, MissingBucketError):
        raise
    except AccessError:
        source.check()
        return refused("forbidden: expected the right to read it")
    except (StorageError, OSError, pa.ArrowException) as error:
        return refused(f"unreadable: {error}")
    if isinstance(data, str):
        return refused(data)
    if len(data) > max_bytes:
        return too_large(len(data))
    if row["size"] not in (UNKNOWN_SIZE, len(data)):
        return refused(f"changed: got {len(data)} bytes; expected {row['size']}, as listed")
    return data


def _read(source: Store, row: ImageRow, cells: dict[str, _Cells]) -> bytes | str:
    if not row["file"]:
        return source.read(row["key"])
    if row["file"] in cells:
        return cells[row["file"]][row["at"]]
    with source.local_copy(row["file"]).open("rb") as file:
        file.seek(row["at"])
        return file.read(row["size"])


class _Cells:
    """Some images of a Parquet file, all read in one pass at the first access."""

    def __init__(self, source: Store, file: str, wanted: Sequence[int], column: str):
        self._read = lru_cache(lambda: self._cells(source.local_copy(file), set(wanted), column))
        self._lock = Lock()

    def __getitem__(self, at: int) -> bytes | str:
        with self._lock:
            return self._read()[at]

    @staticmethod
    def _cells(path: Path, wanted: set[int], column: str) -> dict[int, bytes | str]:
        """Row -> its image file, or the reason why it holds none."""
        file, found, first = pq.ParquetFile(path), {}, 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if wanted.isdisjoint(range(first, first + count)):
                first += count
                continue
            for batch in file.iter_batches(_CELLS, row_groups=[group], columns=[column]):
                for at in wanted.intersection(range(first, first + len(batch))):
                    found[at] = picture_in(batch[0][at - first].as_py())
                first += len(batch)
        if missing := wanted - found.keys():
            raise OSError(f"got no row {min(missing)}; the file is not the one that was listed")
        return found
