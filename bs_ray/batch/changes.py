"""What a listing of the input has that the last whole generation has not: the next one's work.

Both are sorted alike and are read side by side, so memory does not grow with the input.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.accounts import Rows, read_accounts
from bs_ray.batch.external_sort import side_by_side
from bs_ray.batch.input_list import (
    CHANGED,
    GONE,
    LOST,
    NEW,
    UNCHANGED,
    Changes,
    InputList,
    counts_of,
    place_of,
)
from bs_ray.batch.listing import Listing
from bs_ray.batch.readers import fetch_all
from bs_ray.batch.rows import LISTING_SCHEMA
from bs_ray.batch.verify import Outputs
from bs_ray.config import EditJob
from bs_ray.storage import Store

_PAGE = 4096  # photos in memory at once
_STANDING_SCHEMA = LISTING_SCHEMA.append(pa.field("generation", pa.int32(), nullable=False))
_TOUCHED = "touched"  # another etag, the same size: only its bytes tell


class Compared(NamedTuple):
    """A photo of the listing, or one that is gone from it."""

    row: dict[str, Any]
    kind: str
    """What it is to the former generation."""
    made_by: int
    """The generation that has edited it; 0 for none."""
    sha256: str
    """Of the bytes that were edited; "" where there were none."""


def find_changes(
    former: InputList, listing: Listing, job: EditJob, report: Callable[[str], None]
) -> Changes:
    """Compare a listing with a whole generation. Raises StorageError.

    report(line) is called where photos have to be read to tell whether they have changed.
    """
    to_edit, standing = (listing.path.with_name(f"{name}.parquet") for name in ("edit", "stand"))
    counts = Counter[str]()
    with (
        pq.ParquetWriter(to_edit, LISTING_SCHEMA, compression="zstd") as edit_file,
        pq.ParquetWriter(standing, _STANDING_SCHEMA, compression="zstd") as standing_file,
    ):
        compared = _compare(former, listing)
        while page := list(islice(compared, _PAGE)):
            page = _settled(page, job, report)
            counts.update(photo.kind for photo in page)
            edited = [photo.row for photo in page if photo.kind in (NEW, CHANGED, LOST)]
            stand = [
                {**photo.row, "generation": photo.made_by}
                for photo in page
                if photo.kind == UNCHANGED
            ]
            edit_file.write_table(pa.Table.from_pylist(edited, schema=LISTING_SCHEMA))
            standing_file.write_table(pa.Table.from_pylist(stand, schema=_STANDING_SCHEMA))
    return Changes(listing, to_edit, standing, counts_of(counts))


def _compare(former: InputList, listing: Listing) -> Iterator[Compared]:
    """Every photo of either, in order."""
    outputs = Outputs(former.output)
    before = ((place_of(row), (row, rows)) for row, rows in read_accounts(former))
    now = ((place_of(row), row) for batch in listing.batches() for row in batch.to_pylist())
    for was_here, is_here in side_by_side(before, now):
        known = {row["key"]: (row, rows) for row, rows in was_here}
        for row in is_here:
            if row["key"] in known:
                was, rows = known.pop(row["key"])
                kind = _kind(row, was, rows, outputs)
                yield Compared(row, kind, was["generation"], rows[0].get("sha256", ""))
            else:
                yield Compared(row, NEW, 0, "")
        for row, _ in known.values():
            yield Compared(row, GONE, row["generation"], "")


def _kind(row: dict[str, Any], was: dict[str, Any], rows: Rows, outputs: Outputs) -> str:
    if (row["size"], row["plan"]) != (was["size"], was["plan"]):
        return CHANGED
    if not outputs.hold(rows):
        return LOST
    return UNCHANGED if row["etag"] == was["etag"] else _TOUCHED


def _settled(
    page: Sequence[Compared], job: EditJob, report: Callable[[str], None]
) -> list[Compared]:
    """The same, where photos that may have changed have been read and compared by their sha256."""
    touched = [photo for photo in page if photo.kind == _TOUCHED]
    if touched:
        report(f"reading {len(touched):,} photos that were written again, to see what has changed")
    kinds: dict[str, str] = {}
    for first in range(0, len(touched), job.shard_images):  # as many in memory as a task holds
        some = touched[first : first + job.shard_images]
        rows: list[Any] = [photo.row for photo in some]
        found = fetch_all(Store(job.input), rows, job.image_column, job.max_bytes)
        for photo, data in zip(some, found, strict=True):
            same = isinstance(data, bytes) and hashlib.sha256(data).hexdigest() == photo.sha256
            kinds[photo.row["key"]] = UNCHANGED if same else CHANGED
    return [photo._replace(kind=kinds.get(photo.row["key"], photo.kind)) for photo in page]
