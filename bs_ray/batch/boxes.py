"""The boxes that come with photos, for jobs with `region: boxes`.

Those of a packed photo are in its column or its .json, and are listed with it. Those of an image
file are in the .json beside it, a/b.jpg -> a/b.json, and are read when the photo is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bs_ray.batch.rows import ImageRow
from bs_ray.config import EditJob
from bs_ray.images.faces import Box
from bs_ray.images.rows import QuarantinedRow, quarantined
from bs_ray.storage import AccessError, MissingBucketError, StorageError, Store, UnreachableError

_READERS = 8  # threads, since reading is waiting
_MOST = 256  # of one photo
_MAX_BYTES = 1 << 20  # of a .json
_BOXES: TypeAdapter[list[Box]] = TypeAdapter(list[Box])


def with_boxes(edits: str, boxes: str) -> str:
    """What the input list says of a packed photo: its own edits and its boxes, both as JSON, ""
    where it has none."""
    return json.dumps({"edits": edits, "boxes": boxes})


def without_boxes(image: ImageRow, job: EditJob) -> ImageRow:
    """The photo with its own edits alone as its plan."""
    if job.editor.region != "boxes" or not image["file"]:
        return image
    return ImageRow(**{**image, "plan": json.loads(image["plan"])["edits"]})


def boxes_of(
    source: Store, images: Sequence[ImageRow], job: EditJob
) -> dict[str, list[Box] | QuarantinedRow]:
    """Key -> the photo's boxes, or what is wrong with them. Raises StorageError as `fetch_all`."""
    with ThreadPoolExecutor(_READERS) as threads:
        found = threads.map(lambda image: _boxes_of(source, image, job), images)
        return {image["key"]: boxes for image, boxes in zip(images, found, strict=True)}


def _boxes_of(source: Store, image: ImageRow, job: EditJob) -> list[Box] | QuarantinedRow:
    wanted = "[[left, top, right, bottom], ...] in pixels of the upright photo"
    if image["file"]:
        given, place = json.loads(image["plan"])["boxes"], image["file"]
    else:
        place = image["key"].rpartition(".")[0] + ".json"
        try:
            given = _sidecar(source, place, job.boxes_column)
        except (UnreachableError, MissingBucketError, AccessError):
            raise
        except StorageError:
            return _refused(image, f"no boxes: got no {place}; expected {wanted}")
        except ValueError as error:
            return _refused(image, f"no boxes: got {place}, {error}; expected {wanted}")
    if given in (None, ""):
        reason = f"no boxes: got no {job.boxes_column!r} in {place}; expected {wanted}"
        return _refused(image, reason)
    try:
        known = _BOXES.validate_json if isinstance(given, str) else _BOXES.validate_python
        boxes = known(given)
    except ValidationError:
        return _refused(image, f"wrong boxes: got {str(given)[:80]!r}; expected {wanted}")
    if len(boxes) > _MOST:
        return _refused(image, f"wrong boxes: got {len(boxes)}; expected at most {_MOST}")
    return boxes


def _sidecar(source: Store, key: str, field: str) -> Any:
    """A .json's list, or the field of its object. Raises StorageError, ValueError."""
    data = source.read(key)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"which has {len(data)} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("which is no JSON") from None
    return found.get(field) if isinstance(found, dict) else found


def _refused(image: ImageRow, reason: str) -> QuarantinedRow:
    return quarantined(image["key"], "plan", reason)
