"""The pipeline's first stage: read and decode the photos of a shard, and look at them as the base
will.

Its workers do not edit, so this module and what it imports stay free of torch. What they hand on is
each photo's file and the pictures of working size that the base sees; a few photos at a time are
decoded, so that memory does not grow with the shard.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bs_ray.batch.boxes import boxes_of, without_boxes
from bs_ray.batch.input_list import InputList
from bs_ray.batch.readers import fetch_all
from bs_ray.batch.rows import Edits, ImageRow, PlannedRow, pack, pack_files
from bs_ray.batch.survey import place_of_input
from bs_ray.config import EditJob
from bs_ray.editing.locate import Sight, locate, wrong_box
from bs_ray.images.decode_pool import Photo, shared_decode_pool
from bs_ray.images.faces import Box, CenterFace, Face, FaceDetector
from bs_ray.images.rows import DecodedRow, QuarantinedRow, is_quarantined, quarantined

_EDIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_MAX_EDITS = 100  # of one photo
_EDITS: TypeAdapter[Edits] = TypeAdapter(dict[str, dict[str, float]])
_GROUP_PHOTOS, _GROUP_BYTES = 8, 4 << 20

Loaded = list[PlannedRow | QuarantinedRow]


def fetch_shard(
    row: dict[str, Any],
    *,
    job: EditJob,
    input_list: InputList,
    edits: Edits,
    references: Mapping[str, str],
    sight: Sight | None,
    pending: Sequence[int],
) -> dict[str, Any]:
    """{id} -> {shard, rows, files, fetch_s, decode_s}: load the photos of shard pending[id].

    edits, references, sight: as in `load_photos`.
    """
    shard = pending[row["id"]]
    rows, files, fetch_s, decode_s = load_photos(
        input_list.shard(shard), job, edits, references, sight
    )
    return pack(shard, rows, pack_files(files), fetch_s=fetch_s, decode_s=decode_s)


def load_photos(
    images: Sequence[ImageRow],
    job: EditJob,
    edits: Edits,
    references: Mapping[str, str],
    sight: Sight | None,
) -> tuple[Loaded, dict[str, bytes], float, float]:
    """Some photos: their rows, in order; their files; seconds of reading, and of all the rest.

    edits: what is made of photos without edits of their own; references: slider as the job names it
    -> name@version; sight: how the base looks at photos, None where none is to be looked at.
    """
    started, source = time.monotonic(), place_of_input(job.input)[0]
    alone = [without_boxes(image, job) for image in images]
    planned: dict[str, Any] = {
        image["key"]: edits_of(image, edits, references) if job.edits_column else edits
        for image in alone
    }
    wanted = [image for image in images if not is_quarantined(planned[image["key"]])]
    found = fetch_all(source, wanted, job.image_column, job.max_bytes)
    boxes = boxes_of(source, wanted, job) if sight and job.editor.region == "boxes" else {}
    fetched = time.monotonic()
    rows = planned | {image["key"]: data for image, data in zip(wanted, found, strict=True)}
    files = {key: data for key, data in rows.items() if isinstance(data, bytes)}
    pool = shared_decode_pool(job.decode_s, job.decode_mb)
    for group in groups(list(files.items())):
        decoded = pool.decode(group, max_pixels=job.max_pixels)
        for (key, _), photo in zip(group, decoded, strict=True):
            rows[key] = photo
            if not is_quarantined(photo):
                rows[key] = _planned(photo, planned[key], boxes.get(key), job, sight)
    decode_s = time.monotonic() - fetched
    ordered = [rows[image["key"]] for image in images]
    kept = {row["key"]: files[row["key"]] for row in ordered if not is_quarantined(row)}
    return ordered, kept, fetched - started, decode_s


def groups(photos: Sequence[Photo]) -> Iterator[list[Photo]]:
    """Photos in the groups in which they are decoded: several small ones, large ones alone."""
    group: list[Photo] = []
    size = 0
    for photo in photos:
        if group and (len(group) == _GROUP_PHOTOS or size + len(photo[1]) > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(photo)
        size += len(photo[1])
    if group:
        yield group


def _planned(
    photo: DecodedRow,
    edits: Edits,
    boxes: Sequence[Box] | QuarantinedRow | None,
    job: EditJob,
    sight: Sight | None,
) -> PlannedRow | QuarantinedRow:
    """The photo as the base sees it; nobody looks where all its edits are the photo itself."""
    row = PlannedRow(
        key=photo["key"],
        sha256=photo["sha256"],
        format=photo["format"],
        note=photo["note"],
        regions=None,
        edits=edits,
        views=[],
    )
    keeps = job.editor.method == "displacement"
    if not sight or (keeps and not any(any(mix.values()) for mix in edits.values())):
        return row
    if is_quarantined(boxes):
        return boxes
    pixels = photo["pixels"]
    if boxes and (wrong := wrong_box(boxes, (pixels.shape[0], pixels.shape[1]))):
        return quarantined(photo["key"], "plan", f"wrong boxes: {wrong}")
    faces = None if boxes is None else [Face(box) for box in boxes]
    regions, note = locate(pixels, job.editor, sight.eyes, _detector, faces)
    row["note"] = "; ".join(filter(None, [photo["note"], note]))
    row["regions"], row["views"] = regions, sight.views(pixels, regions)
    return row


@lru_cache(maxsize=1)
def _detector() -> FaceDetector:
    """This process's. Raises FacesUnavailable."""
    return CenterFace()


def edits_of(
    image: ImageRow, otherwise: Edits, references: Mapping[str, str]
) -> Edits | QuarantinedRow:
    """The photo's own edits; `otherwise` where it has none.

    It may name a slider as the job does, by its name, or by name@version.
    """
    if not image["plan"]:
        return otherwise
    try:
        edits = _EDITS.validate_json(image["plan"], strict=True)
    except ValidationError:
        return _refused(image, f"got {image['plan'][:80]!r}; expected {{edit: {{slider: number}}}}")
    if not 0 < len(edits) <= _MAX_EDITS:
        return _refused(image, f"got {len(edits)} edits; expected 1 to {_MAX_EDITS}")
    exact = set(references.values())
    known = {r.partition("@")[0]: r for r in exact} | {r: r for r in exact} | dict(references)
    for name, mix in edits.items():
        if not _EDIT_NAME.fullmatch(name):
            return _refused(image, f"got edit {name[:80]!r}; expected letters, digits, _ . + -")
        for slider, strength in mix.items():
            if slider not in known:
                return _refused(image, f"got {slider!r}; expected one of {', '.join(references)}")
            if not math.isfinite(strength):
                return _refused(image, f"got strength {strength} of {slider}; expected a number")
    return {
        name: {known[slider]: strength for slider, strength in mix.items()}
        for name, mix in edits.items()
    }


def _refused(image: ImageRow, reason: str) -> QuarantinedRow:
    return quarantined(image["key"], "plan", f"wrong: {reason}")
