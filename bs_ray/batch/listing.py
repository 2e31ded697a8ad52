"""What lies below an input prefix: photos one by one, or packed in Parquet files or tars.

A listing is a table of photos (LISTING_SCHEMA). Its order depends on names alone: files are sorted
by the bytes of their keys, and the photos of a packed file come as they lie in it. Each node
fetches a packed file once and whole, so that its content is checked like everything else's.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bs_ray.batch.boxes import with_boxes
from bs_ray.batch.external_sort import SortedFiles, ends
from bs_ray.batch.rows import LISTING_SCHEMA, ImageRow
from bs_ray.config import EditJob
from bs_ray.images.formats import SUFFIXES, EmptyInputError
from bs_ray.storage import StorageError, Store, is_key

SUFFIXES_OF = {"images": SUFFIXES, "parquet": (".parquet",), "webdataset": (".tar",)}
"""Input format -> how the names of its files end."""
UNKNOWN_SIZE = -1
"""Size of a photo in a Parquet file, whose footer does not say it."""
_PAGE = 10_000  # photos in a batch of the listing


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

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The photos, some thousands at a time."""
        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(_PAGE)

    def head(self, count: int) -> list[ImageRow]:
        """The first photos."""
        return next(self.batches()).slice(0, count).to_pylist()


class PackedFileError(ValueError):
    """A Parquet file or tar that cannot be listed; the message says what to do."""


def list_photos(
    source: Store, job: EditJob, folder: Path, report: Callable[[int], None]
) -> Listing:
    """Everything that `job` takes from its input, listed into a file in `folder`.

    report(photos so far) is called again and again. Memory holds some thousands of photos, however
    many there are. Raises EmptyInputError, PackedFileError and StorageError.
    """
    files = SortedFiles(source, folder)
    found = {kind: files.ending(suffixes) for kind, suffixes in SUFFIXES_OF.items()}
    commonest = max(found, key=lambda kind: found[kind])
    kind = job.input_format if job.input_format != "auto" else commonest
    path, photos, total = folder / "listing.parquet", 0, 0
    with pq.ParquetWriter(path, LISTING_SCHEMA, compression="zstd") as writer:
        for batch, size in _listed(kind, source, files, job):
            writer.write_batch(batch.slice(0, job.limit - photos) if job.limit else batch)
            photos, total = photos + len(batch), total + size
            report(photos)
            if job.limit and photos >= job.limit:
                photos = job.limit
                break
    if not photos:
        raise EmptyInputError(
            f"{source.uri}: got {files.count} files, none of them a photo; expected at least one "
            f"of {', '.join(SUFFIXES_OF[kind])} at any depth. Check the prefix and input_format"
        )
    listing = Listing(path, kind, photos, files.count - found[kind], total)
    return _sampled(listing, job) if job.sample and job.sample < photos else listing


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


def _listed(kind: str, source: Store, files: SortedFiles, job: EditJob) -> _Batches:
    if kind == "images":
        return _list_images(files)
    members = {"parquet": _parquet_rows, "webdataset": _tar_members}[kind]
    return _list_packed(source, files, SUFFIXES_OF[kind], lambda path: members(path, job))


def _list_images(files: SortedFiles) -> _Batches:
    for page in files.batches():
        batch = page.filter(ends(page["key"], SUFFIXES))
        empty, zero = pa.repeat("", len(batch)), pa.repeat(pa.scalar(0, pa.int64()), len(batch))
        columns = [batch["key"], batch["size"], batch["etag"], empty, zero, empty]
        listed = pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)
        yield listed, pc.sum(batch["size"]).as_py() or 0


def _list_packed(
    source: Store,
    files: SortedFiles,
    suffixes: tuple[str, ...],
    members: Callable[[Path], Iterator[dict[str, Any]]],
) -> _Batches:
    """members(path of a packed file) -> the rows of its photos."""
    found = (page.filter(ends(page["key"], suffixes)) for page in files.batches())
    for file in (row for page in found for row in page.to_pylist()):
        place = f"{source.uri}/{file['key']}"
        stem = file["key"].rpartition(".")[0]
        rows = []
        try:
            for number, row in enumerate(members(source.local_copy(file["key"]))):
                key = f"{stem}/{row['key']}"
                # Whoever packed the file chose the names; one that could leave the output prefix
                # is replaced.
                key = key if is_key(key) else f"{stem}/{number:08d}"
                rows.append({**row, "key": key, "etag": file["etag"], "file": file["key"]})
        except (OSError, pa.ArrowException, tarfile.TarError) as error:
            if isinstance(error, StorageError):
                raise
            raise PackedFileError(
                f"{place}: got a file that cannot be read ({error}); expected a whole one. Write "
                "it again, or move it away"
            ) from error
        _check_names([row["key"] for row in rows], place)
        yield pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA), file["size"]


def _check_names(keys: list[str], file: str) -> None:
    """Raise PackedFileError for photos whose outputs would have one name.

    Outputs are named by keys; a key without a photo's suffix gets that of its content.
    """
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
    boxes_column = job.boxes_column if job.editor.region == "boxes" else None
    for needed in filter(None, [job.image_column, job.edits_column, boxes_column]):
        if needed not in names:
            raise PackedFileError(
                f"{path.name}: got no column {needed!r}; expected one of {', '.join(names)}. Set "
                "image_column (and edits_column, boxes_column)"
            )
    own = (job.key_column, job.edits_column, boxes_column)
    columns = [name for name in own if name in names]
    at = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        read = file.read_row_group(group, columns).to_pylist() if columns else [{}] * count
        for row in read:
            key, plan = row.get(job.key_column), _text_of(row.get(job.edits_column or ""))
            if boxes_column:
                plan = with_boxes(plan, _text_of(row[boxes_column]))
            yield {
                "key": f"{at:08d}" if key is None else str(key),
                "size": UNKNOWN_SIZE,
                "at": at,
                "plan": plan,
            }
            at += 1


def _tar_members(path: Path, job: EditJob) -> Iterator[dict[str, Any]]:
    """The photos of a tar, each with its own edits and boxes.

    Those are in the .json whose name is the photo's up to the first dot.
    """
    boxed = job.editor.region == "boxes"
    plans: dict[str, str] = {}
    photos = []
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.name.lower().endswith(SUFFIXES):
                name = member.name.removeprefix("./")
                photos.append((name, member.offset_data, member.size))
            elif (job.edits_column or boxed) and member.name.endswith(".json"):
                text = archive.extractfile(member).read()  # type: ignore[union-attr]
                plan = _json_field(text, job.edits_column) if job.edits_column else ""
                boxes = _json_field(text, job.boxes_column) if boxed else ""
                plans[_sample(member.name)] = with_boxes(plan, boxes) if boxed else plan
    none = with_boxes("", "") if boxed else ""
    for name, at, size in photos:
        yield {"key": name, "size": size, "at": at, "plan": plans.get(_sample(name), none)}


def _sample(name: str) -> str:
    """The WebDataset sample of a member: its path up to the first dot of its file name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    return folder + slash + file.partition(".")[0]


def _json_field(text: bytes, field: str) -> str:
    try:
        return _text_of(json.loads(text).get(field))
    except (ValueError, AttributeError):
        return "not JSON"  # the photo is quarantined when its edits are read


def _text_of(edits: Any) -> str:
    return "" if edits is None else edits if isinstance(edits, str) else json.dumps(edits)
