"""The pool of real photos: the same on every worker, broken ones counted and listed."""

import pytest
import torch

from bs_ray.datasets.pool import PhotoPool, PhotosError
from bs_ray.models.base import DiffusionModel
from tests.train.conftest import photo_rows


def test_the_pool_does_not_depend_on_the_order_of_rows(model: DiffusionModel) -> None:
    rows = photo_rows(9)
    pool, other = PhotoPool.load(rows, model), PhotoPool.load(rows[::-1], model)
    assert pool.pixels.dtype == torch.uint8 and pool.pixels.shape == (9, 3, 64, 64)
    assert torch.equal(pool.pixels, other.pixels)
    assert torch.equal(pool.latents([3, 1])[1], other.latents([1])[0])


def test_a_large_pool_keeps_the_same_sample(model: DiffusionModel, monkeypatch) -> None:
    monkeypatch.setattr("bs_ray.datasets.pool.MAX_PHOTOS", 3)
    rows = photo_rows(12)
    pool, other = PhotoPool.load(rows, model), PhotoPool.load(rows[::-1], model)
    assert len(pool) == 3 and torch.equal(pool.pixels, other.pixels)


def test_broken_photos_are_counted_and_too_many_refused(model: DiffusionModel) -> None:
    rows = photo_rows(3)
    broken = [{"key": f"x/{i}", "identity": "x", "bytes": b"no image"} for i in range(4)]
    assert PhotoPool.load([*rows, broken[0]], model).broken == ["x/0"]
    with pytest.raises(
        PhotosError, match=r"got 7, of which 4 do not decode \(x/0, x/1, x/2, x/3\); expected"
    ):
        PhotoPool.load([*rows, *broken], model)
    with pytest.raises(PhotosError, match="got 0"):
        PhotoPool.load([], model)


def test_other_sizes_and_a_stricter_threshold(model: DiffusionModel) -> None:
    rows = [*photo_rows(8), {"key": "x/0", "identity": "x", "bytes": b"no image"}]
    pool = PhotoPool.load(rows, model, px=32, max_broken_share=0.2)
    assert pool.px == 32 and pool.latent_shape == (4, 8, 8) and len(pool) == 8
    assert pool.latents([0]).shape == (1, 4, 8, 8)
    with pytest.raises(PhotosError, match=r"at most 10% of them broken.*max_broken_share"):
        PhotoPool.load(rows, model, max_broken_share=0.1)


def test_without_photos_the_base_draws_some(model: DiffusionModel, monkeypatch) -> None:
    monkeypatch.setattr("bs_ray.datasets.pool._GENERATED", 3)
    monkeypatch.setattr("bs_ray.datasets.pool._GENERATED_STEPS", 2)
    pool, other = (PhotoPool.generated(model, ["a face", "a man"], seed=0) for _ in range(2))
    assert len(pool) == 3 and torch.equal(pool.pixels, other.pixels)
    assert not torch.equal(pool.pixels[0], pool.pixels[1])
