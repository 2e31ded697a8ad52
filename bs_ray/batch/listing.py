"""What lies below an input prefix: photos one by one, or packed in Parquet files or tars.

A listing is a table of photos (LISTING_SCHEMA). Its order depends on names alone: files are sorted
by the bytes of their keys, and the photos of a packed file come as they lie in it. Each node
fetches a packed file once and whole, so that its content is checked like everything else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bs_ray.batch.external_sort import UNREADABLE
from bs_ray.batch.packed import (
    DAMAGE,
    NoPicturesError,
    PackedFileError,
    Row,
    check_names,
    holds_pictures,
    parquet_rows,
    tar_members,
)
from bs_ray.batch.rows import LISTING_SCHEMA, ImageRow
from bs_ray.batch.survey import SUFFIXES_OF, Survey, place_of_input
from bs_ray.config import EditJob
from bs_ray.images.formats import EmptyInputError
from bs_ray.storage import StorageError, Store, is_key

_PAGE = 10_000  # photos in a batch of the listing
_SHOWN = 20  # packed files that an error names


@dataclass(frozen=True)
class Listing:
    """Photos below a prefix, in a file, since there may be millions."""

    path: Path
    """Parquet, LISTING_SCHEMA, in order."""
    format: str
    """images, parquet or webdataset."""
    photos: int
    ignored: int
    """Files of any other format."""
    bytes: int
    """Size of the files that hold the photos."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The photos, some thousands at a time."""
        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(_PAGE)

    def head(self, count: int) -> list[ImageRow]:
        """The first photos."""
        return next(self.batches()).slice(0, count).to_pylist()


def list_photos(
    source: Store, job: EditJob, folder: Path, report: Callable[[int], None]
) -> Listing:
    """Everything that `job` takes from its input, listed into a file in `folder`.

    report(photos so far) is called again and again. Memory holds some thousands of photos, however
    many there are. Raises EmptyInputError, PackedFileError and StorageError.
    """
    survey = Survey(source, folder, place_of_input(job.input)[1], Store(job.output))
    kind, passed_over = _format(source, survey, job)
    path, photos, total = folder / "listing.parquet", 0, 0
    with pq.ParquetWriter(path, LISTING_SCHEMA, compression="zstd") as writer:
        for batch, size in _listed(kind, source, survey, job):
            writer.write_batch(batch.slice(0, job.limit - photos) if job.limit else batch)
            photos, total = photos + len(batch), total + size
            report(photos)
            if job.limit and photos >= job.limit:
                photos = job.limit
                break
    notes = (*passed_over, *survey.notes(kind))
    if not photos:
        raise EmptyInputError(
            f"{job.input}: got {survey.files} files, none of them a photo; expected at least one "
            f"of {', '.join(SUFFIXES_OF[kind])} at any depth. Check the prefix and input_format"
            f"{''.join(f'; {note}' for note in notes)}"
        )
    listing = Listing(path, kind, photos, survey.ignored(kind), total, notes)
    return _sampled(listing, job) if job.sample and job.sample < photos else listing


def _format(source: Store, survey: Survey, job: EditJob) -> tuple[str, list[str]]:
    """(the input's format, notes on those that more files have, and that hold no photos)."""
    if job.input_format != "auto":
        return job.input_format, []
    kinds = sorted(survey.counts, key=lambda kind: -survey.counts[kind])  # stable
    notes: list[str] = []
    for kind in kinds:
        first = survey.first.get(kind)
        if not survey.counts[kind] or not first:
            continue
        if kind == "images" or _holds_pictures(source, first, job):
            return kind, notes
        what = f"column {job.image_column!r}" if kind == "parquet" else "photos"
        notes.append(f"input_format: not {kind}, since {first} holds no {what}")
    return kinds[0], []


def _holds_pictures(source: Store, key: str, job: EditJob) -> bool:
    try:
        return holds_pictures(source.local_copy(key), job)
    except StorageError:
        raise
    except DAMAGE:
        return True  # it is quarantined by name, and the others are listed


def _sampled(listing: Listing, job: EditJob) -> Listing:
    """The job's sample of the photos, in order."""
    assert job.sample
    chosen = np.random.default_rng(job.seed).choice(listing.photos, job.sample, replace=False)
    chosen.sort()
    path, first = listing.path.with_name("sample.parquet"), 0
    with pq.ParquetWriter(path, LISTING_SCHEMA, compression="zstd") as writer:
        for batch in listing.batches():
            low, high = np.searchsorted(chosen, [first, first + len(batch)])
            writer.write_batch(batch.take(pa.array(chosen[low:high] - first)))
            first += len(batch)
    return replace(listing, path=path, photos=job.sample)


# --- by format ---------------------------------------------------------------------------------

_Batches = Iterator[tuple[pa.RecordBatch, int]]
"""Photos, and the bytes of the files that hold them."""


def _listed(kind: str, source: Store, survey: Survey, job: EditJob) -> _Batches:
    if kind == "images":
        return _list_images(survey)
    members = {"parquet": parquet_rows, "webdataset": tar_members}[kind]
    return _list_packed(source, survey.pages(kind), lambda path: members(path, job))


def _list_images(survey: Survey) -> _Batches:
    for batch in survey.pages("images"):
        empty, zero = pa.repeat("", len(batch)), pa.repeat(pa.scalar(0, pa.int64()), len(batch))
        columns = [batch["key"], batch["size"], batch["etag"], empty, zero, empty]
        listed = pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)
        yield listed, pc.sum(pc.max_element_wise(batch["size"], 0)).as_py() or 0


def _list_packed(
    source: Store, pages: Iterator[pa.RecordBatch], members: Callable[[Path], Iterator[Row]]
) -> _Batches:
    """members(path of a packed file) -> the rows of its photos.

    A file that cannot be read, or holds no photos, is a row that will be quarantined. Raises
    PackedFileError where there is no other.
    """
    refusals, sound = list[str](), False
    for file in (row for page in pages for row in page.to_pylist()):
        rows, reason = _members(source, file, members)
        sound = sound or bool(rows) or not reason
        if reason:
            refusals.append(f"{source.uri}/{file['key']}: {reason}")
            rows.append(_refused(file, reason))
        yield pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA), max(0, file["size"])
    if refusals and not sound:
        raise PackedFileError("\n".join(refusals[:_SHOWN]))


def _members(
    source: Store, file: Row, members: Callable[[Path], Iterator[Row]]
) -> tuple[list[Row], str]:
    """(a packed file's photos, why there are no more of them)."""
    stem, rows, reason = file["key"].rpartition(".")[0], list[Row](), ""
    if file["size"] == UNREADABLE:
        return rows, file["etag"]
    try:
        for number, row in enumerate(members(source.local_copy(file["key"]))):
            key = f"{stem}/{row['key']}"
            # Whoever packed the file chose the names; one that could leave the output prefix, or
            # is no text, is replaced.
            key = key if is_key(key) and _is_text(key) else f"{stem}/{number:08d}"
            rows.append({**row, "key": key, "etag": file["etag"], "file": file["key"]})
    except StorageError:
        raise
    except NoPicturesError as error:
        reason = f"no photos: {error}"
    except DAMAGE as error:
        reason = (
            f"damaged: got a file that cannot be read ({error}); expected a whole one. Write it "
            "again, or move it away"
        )
    check_names([row["key"] for row in rows], f"{source.uri}/{file['key']}")
    return rows, reason


def _is_text(key: str) -> bool:
    return key.encode("utf-8", "replace").decode() == key


def _refused(file: Row, reason: str) -> Row:
    return {
        "key": file["key"],
        "size": UNREADABLE,
        "etag": reason,
        "file": "",
        "at": max(0, file["size"]),  # behind its photos
        "plan": "",
    }
