"""The photos that a job trains on, as its settings choose them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool, PhotosError
from bs_ray.images.faces import CenterFace
from bs_ray.models.base import DiffusionModel
from bs_ray.tiny.photo.people import held_out, person_of


def photos_of(job: TrainJob, rows: Iterable[Mapping[str, Any]], model: DiffusionModel) -> PhotoPool:
    """The pool of rows with `key` and `bytes`, see `PhotoPool.load`. Raises PhotosError."""
    if job.people == "not-held-out":
        rows = (row for row in rows if not _held_out(row["key"]))
    detector = CenterFace() if job.region == "face" else None
    return PhotoPool.load(rows, model, job.resolution, job.max_broken_share, detector)


def _held_out(key: str) -> bool:
    person = person_of(key)
    if person is None:
        raise PhotosError(
            f"people: got not-held-out for photos, which have {key}; expected LFW's "
            "Name/Name_0001.jpg or UTKFace's AGE_GENDER_RACE_DATE.jpg, whose names say who is "
            "held out. Leave `people` out for other photos"
        )
    return held_out(person)
