"""The sliders of a table: those that its registry lacks are trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice

from rich.console import Console

from bs_ray.config import TableJob
from bs_ray.config.evaluate import PhotoSplit
from bs_ray.config.table import DRAWN_PHOTOS
from bs_ray.datasets.ingest import DamagedArchiveError, write_shards
from bs_ray.datasets.pictures import ARCHIVES, DAMAGE, pictures_in
from bs_ray.datasets.shards import shard_keys
from bs_ray.images.formats import EmptyInputError
from bs_ray.models import base_folder
from bs_ray.models.base import BaseNotFound
from bs_ray.storage import Store
from bs_ray.tiny.drawn import ingest_tiny_world
from bs_ray.tiny.photo.people import held_out, person_of
from bs_ray.train.features import load_features
from bs_ray.train.run import train

_PEOPLE, _SEED = 200, 7
"""Of the tiny world's training photos; the demo's."""
_PHOTOS = 2000
"""At most so many photos are packed: a table's runs see fewer."""


@dataclass(frozen=True)
class Trained:
    """One slider, by every method that trains."""

    versions: dict[str, str]
    """name@version in the table's registry."""
    seconds: dict[str, float]
    """Spent on training steps."""


def make_slider(
    job: TableJob, slider: str, methods: list[str], photos: str | None, console: Console
) -> Trained:
    """Train and publish what is missing. photos: of `training_photos`."""
    made = Trained({}, {})
    for method in methods:
        if how := job.training(slider, method, photos):
            result = train(how, console=console)
            made.versions[method], made.seconds[method] = result.slider, result.seconds
    return made


def untrainable(job: TableJob) -> dict[str, str]:
    """Method -> why it cannot be trained here: its loss wants a network that is not at hand."""
    found = {}
    for method in job.methods:
        how = job.training(next(iter(job.sliders)), method)
        if how and how.losses.needs_features:
            try:
                load_features(base_folder(job.base), "cpu")
            except BaseNotFound as missing:
                found[method] = str(missing)
    return found


def training_photos(job: TableJob) -> str | None:
    """Where the shards lie that methods train on; a folder or an archive is packed first, without
    the people that a split holds out. Raises EmptyInputError, DamagedArchiveError, StorageError."""
    if job.photos is None:
        return None
    apart = any(isinstance(s, PhotoSplit) and s.people == "held-out" for s in job.splits.values())
    packed = _packed(job, apart)
    if job.photos == DRAWN_PHOTOS:
        ingest_tiny_world(packed.uri, photos=1, people=_PEOPLE, broken=0, seed=_SEED)
        return packed.join("lfw").uri
    if not job.photos.lower().endswith(ARCHIVES) and shard_keys(Store(job.photos)):
        return job.photos
    pictures = (
        picture
        for picture in pictures_in(job.photos)
        if not (apart and held_out(person_of(picture[0]) or ""))
    )
    try:
        summary = write_shards(packed, islice(pictures, _PHOTOS), shard_images=1000)
    except DAMAGE as error:
        raise DamagedArchiveError(
            f"photos: got a damaged archive {job.photos} ({error}); expected a whole one"
        ) from error
    if not summary.photos:
        raise EmptyInputError(
            f"photos: got no picture in {job.photos}; expected photos to train on"
        )
    return packed.uri


def _packed(job: TableJob, apart: bool) -> Store:
    """Where photos of this source are packed, beside those of other tables."""
    content = f"{job.photos} {apart}"
    return Store(job.runs).join("photos", hashlib.sha256(content.encode()).hexdigest()[:8])
