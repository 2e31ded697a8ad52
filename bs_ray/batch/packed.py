"""The photos in a packed file: the rows of a Parquet file, the members of a tar."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.boxes import with_boxes
from bs_ray.batch.columns import check_picture_type, picture_in
from bs_ray.config import EditJob
from bs_ray.images.formats import SUFFIXES, is_companion

UNKNOWN_SIZE = -1
"""Size of a photo in a Parquet file, whose footer does not say it."""
_LOOKED_AT = 200  # members of a tar, until one is a photo
Row = dict[str, Any]


class PackedFileError(ValueError):
    """A Parquet file or tar that cannot be listed; the message says what to do."""


class NoPicturesError(PackedFileError):
    """A packed file that holds something else, such as the metadata of another one's photos."""


class CutArchiveError(ValueError):
    """A tar that ends before its end; the members before are sound."""


def holds_pictures(path: Path, job: EditJob) -> bool:
    """Whether a packed file holds photos where the job looks for them. Raises as its reader."""
    if path.suffix.lower() == ".parquet":
        return job.image_column in pq.read_schema(path).names
    with tarfile.open(path, "r:") as archive:
        some = (member.name for member, _ in zip(archive, range(_LOOKED_AT), strict=False))
        return any(_is_photo(name) for name in some)


def _is_photo(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_companion(name)


def parquet_rows(path: Path, job: EditJob) -> Iterator[Row]:
    """The rows of a Parquet file, each a photo. Raises PackedFileError for its columns."""
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    boxes_column = job.boxes_column if job.editor.region == "boxes" else None
    for needed in filter(None, [job.image_column, job.edits_column, boxes_column]):
        if needed not in names:
            raise NoPicturesError(
                f"{path.name}: got no column {needed!r}; expected one of {', '.join(names)}. Set "
                "image_column (and edits_column, boxes_column)"
            )
    _check_cells(file, path, job.image_column)
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


def _check_cells(file: pq.ParquetFile, path: Path, column: str) -> None:
    """Raise PackedFileError where no cell of the column can hold a picture, or the first one does
    not: what is wrong with all photos is said before any work."""
    try:
        check_picture_type(file.schema_arrow.field(column).type, column)
    except ValueError as error:
        raise PackedFileError(f"{path.name}: {error}. Set image_column") from None
    first = next(file.iter_batches(1, columns=[column]), None)
    cell = first[0][0].as_py() if first is not None and len(first) else None
    found = picture_in(cell) if cell is not None else b""
    if isinstance(found, str) and not found.startswith("missing: its row holds no"):
        raise PackedFileError(
            f"{path.name}: column {column!r}, {found.partition(': ')[2]}. Set image_column, or "
            "write the pictures themselves into it"
        )


def tar_members(path: Path, job: EditJob) -> Iterator[Row]:
    """The photos of a tar, each with its own edits and boxes.

    Those are in the .json whose name is the photo's up to the first dot. Raises CutArchiveError
    after the photos before the cut.
    """
    boxed = job.editor.region == "boxes"
    plans: dict[str, str] = {}
    photos, cut, size = list[tuple[str, int, int]](), "", path.stat().st_size
    with tarfile.open(path, "r:") as archive:
        try:
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                if _is_photo(member.name):
                    name = member.name.removeprefix("./")
                    photos.append((name, member.offset_data, member.size))
                elif (job.edits_column or boxed) and member.name.endswith(".json"):
                    text = archive.extractfile(member).read()  # type: ignore[union-attr]
                    plan = _json_field(text, job.edits_column) if job.edits_column else ""
                    boxes = _json_field(text, job.boxes_column) if boxed else ""
                    plans[_sample(member.name)] = with_boxes(plan, boxes) if boxed else plan
        except tarfile.ReadError as error:
            cut = str(error)
    none = with_boxes("", "") if boxed else ""
    for name, at, length in photos:
        yield {"key": name, "size": length, "at": at, "plan": plans.get(_sample(name), none)}
    if cut:
        raise CutArchiveError(f"{cut}; the {len(photos)} photos before that are taken")


def check_names(keys: list[str], file: str) -> None:
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


DAMAGE = (OSError, pa.ArrowException, tarfile.TarError, CutArchiveError)
"""What reading a damaged packed file raises."""
