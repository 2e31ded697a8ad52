"""Which photos a job trains on."""

import pytest

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotosError
from bs_ray.models.base import DiffusionModel
from bs_ray.tiny.photo.people import held_out
from bs_ray.train.photos import photos_of
from tests.train.conftest import PROMPTS, jpeg


def job(**settings: object) -> TrainJob:
    return TrainJob.model_validate(
        {"kind": "train", "name": "smile", "prompts": PROMPTS, "photos": "data"} | settings
    )


def test_held_out_people_are_left_out(model: DiffusionModel) -> None:
    people = [f"Ada_{n}" for n in range(30)]
    rows = [{"key": f"{who}/{who}_0001.jpg", "bytes": jpeg(n)} for n, who in enumerate(people)]
    pool = photos_of(job(people="not-held-out"), rows, model)
    assert 0 < len(pool) < len(people)
    assert {key.split("/")[0] for key in pool.keys} == {p for p in people if not held_out(p)}
    assert len(photos_of(job(), rows, model)) == len(people)
    with pytest.raises(PhotosError, match=r"got not-held-out for photos, which have me\.jpg"):
        photos_of(job(people="not-held-out"), [{"key": "me.jpg", "bytes": jpeg(0)}], model)


@pytest.mark.parametrize("settings", [{"region": "face"}, {"people": "not-held-out"}])
def test_settings_of_photos_want_photos_and_are_stored_where_they_are_set(settings: dict) -> None:
    assert job(**settings).model_dump().items() >= settings.items()
    assert not job().model_dump().keys() & settings.keys()  # runs of earlier versions are found
    with pytest.raises(ValueError, match="got region face or people without photos"):
        job(photos=None, losses={"perceptual": 0, "adversarial": 0}, **settings)
