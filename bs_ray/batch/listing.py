"""What lies below an input prefix: photos one by one, or packed in Parquet files or tars.

A listing is a table of photos (LISTING_SCHEMA), in an order that depends on nothing but names:
files by the bytes of their keys, and within a packed file as they lie. Packed files are fetched
whole, once for a node, so that their content is checked like everything else's.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bs_ray.batch.external_sort import SortedFiles, ends
from bs_ray.batch.rows import LISTING_SCHEMA, ImageRow
from bs_ray.config import EditJob
from bs_ray.images.rows import EmptyInputError
from bs_ray.storage import (
    StorageError,
    Store,
    is_key,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SUFFIXES = {"images": SUFFIXES, "parquet": (".parquet",), "webdataset": (".tar",)}
_PAGE = 10_000  # photos in a batch of the listing
UNKNOWN_SIZE = -1
"""Of a photo in a Parquet file: its footer does not say."""


@dataclass(frozen=True)
class Listing:
    """Photos below a prefix, in a file: there may be millions."""

    path: Path
    """Parquet, LISTING_SCHEMA, in order."""
    format: str
    """images, parquet or webdataset."""
    photos: int
    ignored: int
    """Files that are none of these."""
    bytes: int
    """Size of the files that hold the photos."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The photos, some at a time."""
        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(_PAGE)

    def head(self, count: int) -> list[ImageRow]:
        """The first photos."""
        return next(self.batches()).slice(0, count).to_pylist()


class PackedFileError(ValueError):
    """A Parquet file or tar that cannot be listed; the message says what to do."""


def list_photos(source: Store, job: EditJob, folder: Path, seen: Callable[[int], None]) -> Listing:
    """Everything that `job` takes from its input, listed into a file in `folder`.

    seen: told how many photos there are so far. Memory holds some thousands of them, however many
    there are. Raises EmptyInputError, PackedFileError and StorageError.
    """
    files = SortedFiles(source, folder)
    kinds = {kind: files.ending(suffixes) for kind, suffixes in _SUFFIXES.items()}
    most = max(kinds, key=lambda kind: kinds[kind])
    kind = job.input_format if job.input_format != "auto" else most
    path, photos, total = folder / "listing.parquet", 0, 0
    with pq.ParquetWriter(path, LISTING_SCHEMA, compression="zstd") as writer:
        for batch, size in _LISTERS[kind](source, files, job):
            writer.write_batch(batch.slice(0, job.limit - photos) if job.limit else batch)
            photos, total = photos + len(batch), total + size
            seen(photos)
            if job.limit and photos >= job.limit:
                photos = job.limit
                break
    if not photos:
        raise EmptyInputError(
            f"{source.uri}: got {files.count} files, none of them a photo; expected at least one "
            f"of {', '.join(_SUFFIXES[kind])} at any depth. Check the prefix and input_format"
        )
    listing = Listing(path, kind, photos, files.count - kinds[kind], total)
    return _drawn(listing, job) if job.sample and job.sample < photos else listing


def _drawn(listing: Listing, job: EditJob) -> Listing:
    """A sample of the photos, in order."""
    assert job.sample
    drawn = np.random.default_rng(job.seed).choice(listing.photos, job.sample, replace=False)
    drawn.sort()
    path, first = listing.path.with_name("sample.parquet"), 0
    with pq.ParquetWriter(path, LISTING_SCHEMA, compression="zstd") as writer:
        for batch in listing.batches():
            low, high = np.searchsorted(drawn, [first, first + len(batch)])
            writer.write_batch(batch.take(pa.array(drawn[low:high] - first)))
            first += len(batch)
    return replace(listing, path=path, photos=job.sample)


# ---------------------------------------------------------------------------- listing

_Batches = Iterator[tuple[pa.RecordBatch, int]]


def _list_images(source: Store, files: SortedFiles, job: EditJob) -> _Batches:
    for page in files.batches():
        batch = page.filter(ends(page["key"], SUFFIXES))
        empty, zero = pa.repeat("", len(batch)), pa.repeat(pa.scalar(0, pa.int64()), len(batch))
        columns = [batch["key"], batch["size"], batch["etag"], empty, zero, empty]
        listed = pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)
        yield listed, pc.sum(batch["size"]).as_py() or 0


def _list_packed(
    members: Callable[[Path, EditJob], Iterator[dict[str, Any]]], suffixes: Sequence[str]
) -> Callable[[Store, SortedFiles, EditJob], _Batches]:
    def lister(source: Store, files: SortedFiles, job: EditJob) -> _Batches:
        found = (page.filter(ends(page["key"], suffixes)) for page in files.batches())
        for file in (row for page in found for row in page.to_pylist()):
            stem = file["key"].rpartition(".")[0]
            rows = []
            try:
                for number, row in enumerate(members(source.local_copy(file["key"]), job)):
                    key = f"{stem}/{row['key']}"
                    # Names are the packer's; one that could leave the output is replaced.
                    key = key if is_key(key) else f"{stem}/{number:08d}"
                    rows.append({**row, "key": key, "etag": file["etag"], "file": file["key"]})
            except (OSError, pa.ArrowException, tarfile.TarError) as error:
                if isinstance(error, StorageError):
                    raise
                raise PackedFileError(
                    f"{source.uri}/{file['key']}: got a file that cannot be read ({error}); "
                    "expected a whole one. Write it again, or move it away"
                ) from error
            _check_names([row["key"] for row in rows], f"{source.uri}/{file['key']}")
            yield pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA), file["size"]

    return lister


def _check_names(keys: list[str], file: str) -> None:
    """Outputs are named by keys; one without a photo's suffix gets that of its content."""
    stems = {key.rpartition(".")[0] for key in keys if key.lower().endswith(SUFFIXES)}
    clash = next((key for key, times in Counter(keys).items() if times > 1 or key in stems), None)
    if clash is not None:
        raise PackedFileError(
            f"{file}: got two photos named {clash!r}; expected each name once, for outputs are "
            "named by it. Choose another key_column, or one that is not there to number the rows"
        )


def _parquet_rows(path: Path, job: EditJob) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    for needed in filter(None, [job.image_column, job.plan]):
        if needed not in names:
            raise PackedFileError(
                f"{path.name}: got no column {needed!r}; expected one of {', '.join(names)}. Set "
                "image_column (and plan)"
            )
    columns = [name for name in (job.key_column, job.plan) if name in names]
    at = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        read = file.read_row_group(group, columns).to_pylist() if columns else [{}] * count
        for row in read:
            key, plan = row.get(job.key_column), row.get(job.plan or "")
            yield {
                "key": f"{at:08d}" if key is None else str(key),
                "size": UNKNOWN_SIZE,
                "at": at,
                "plan": _plan_text(plan),
            }
            at += 1


def _tar_members(path: Path, job: EditJob) -> Iterator[dict[str, Any]]:
    """Photos of a tar, each with the plan of the .json that shares its name up to the first dot."""
    plans: dict[str, str] = {}
    photos = []
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.name.lower().endswith(SUFFIXES):
                name = member.name.removeprefix("./")
                photos.append((name, member.offset_data, member.size))
            elif job.plan and member.name.endswith(".json"):
                text = archive.extractfile(member).read()  # type: ignore[union-attr]
                plans[_sample(member.name)] = _plan_field(text, job.plan)
    for name, at, size in photos:
        plan = plans.get(_sample(name), "")
        yield {"key": name, "size": size, "at": at, "plan": plan}


def _sample(name: str) -> str:
    """The WebDataset sample of a member: its path up to the first dot of its file name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    return folder + slash + file.partition(".")[0]


def _plan_field(text: bytes, field: str) -> str:
    try:
        return _plan_text(json.loads(text).get(field))
    except (ValueError, AttributeError):
        return "not JSON"  # said of the photo when its plan is read


def _plan_text(plan: Any) -> str:
    return "" if plan is None else plan if isinstance(plan, str) else json.dumps(plan)


_LISTERS: dict[str, Callable[[Store, SortedFiles, EditJob], _Batches]] = {
    "images": _list_images,
    "parquet": _list_packed(_parquet_rows, _SUFFIXES["parquet"]),
    "webdataset": _list_packed(_tar_members, _SUFFIXES["webdataset"]),
}
