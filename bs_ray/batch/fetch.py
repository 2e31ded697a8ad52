"""The pipeline's first stage: read and decode the photos of a shard.

Its workers do not edit, so this module and what it imports stay free of torch.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bs_ray.batch.input_list import InputList
from bs_ray.batch.readers import fetch_all
from bs_ray.batch.rows import Edits, ImageRow, PlannedRow, pack
from bs_ray.batch.survey import place_of_input
from bs_ray.config import EditJob
from bs_ray.images.decode_pool import shared_decode_pool
from bs_ray.images.rows import DecodedRow, QuarantinedRow, is_quarantined, quarantined

_EDIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_MAX_EDITS = 100  # of one photo
_EDITS: TypeAdapter[Edits] = TypeAdapter(dict[str, dict[str, float]])


def fetch_shard(
    row: dict[str, Any],
    *,
    job: EditJob,
    input_list: InputList,
    edits: Edits,
    references: Mapping[str, str],
    pending: Sequence[int],
) -> dict[str, Any]:
    """{id} -> {shard, rows, fetch_s, decode_s}: read and decode the photos of shard pending[id].

    edits, references: as in `load_photos`.
    """
    shard = pending[row["id"]]
    rows, fetch_s, decode_s = load_photos(input_list.shard(shard), job, edits, references)
    return pack(shard, rows, fetch_s=fetch_s, decode_s=decode_s)


def load_photos(
    images: Sequence[ImageRow], job: EditJob, edits: Edits, references: Mapping[str, str]
) -> tuple[list[PlannedRow | QuarantinedRow], float, float]:
    """Fetch and decode some photos: their rows, in order, and the seconds that each took.

    edits: what is made of photos without edits of their own; references: slider as the job names it
    -> name@version.
    """
    started = time.monotonic()
    planned: dict[str, Any] = {
        image["key"]: edits_of(image, edits, references) if job.edits_column else edits
        for image in images
    }
    wanted = [image for image in images if not is_quarantined(planned[image["key"]])]
    files = fetch_all(place_of_input(job.input)[0], wanted, job.image_column, job.max_bytes)
    found = dict(zip((image["key"] for image in wanted), files, strict=True))
    fetched = time.monotonic()
    sound = [(key, data) for key, data in found.items() if isinstance(data, bytes)]
    pool = shared_decode_pool(job.decode_s, job.decode_mb)
    decoded = pool.decode(sound, max_pixels=job.max_pixels)
    rows: dict[str, Any] = planned | found
    for (key, data), photo in zip(sound, decoded, strict=True):
        rows[key] = photo if is_quarantined(photo) else _planned(photo, planned[key], data, job)
    decode_s = time.monotonic() - fetched
    return [rows[image["key"]] for image in images], fetched - started, decode_s


def _planned(photo: DecodedRow, edits: Edits, data: bytes, job: EditJob) -> PlannedRow:
    """The photo's file goes along where any of the edits is the photo itself."""
    keeps = job.editor.method == "displacement"
    copied = keeps and any(not any(mix.values()) for mix in edits.values())
    return PlannedRow(**{**photo, "source": data if copied else None, "edits": edits})


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
