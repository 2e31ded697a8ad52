"""The pool of real photos: the same on every worker, broken ones counted and listed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bs_ray.datasets.pool import PhotoPool, PhotosError
from bs_ray.images.faces import Face
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


class _Detector:
    """Says of a photo what its first pixel says: no face in black ones."""

    def find(self, pixels: np.ndarray) -> list[Face]:
        if not pixels[0, 0].any():
            return []
        eyes = np.array([[40, 30], [60, 30], [0, 0], [0, 0], [0, 0]], np.float32)
        return [Face((0, 0, 4, 4)), Face((30, 20, 70, 70), eyes)]


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_faces_are_framed_as_the_base_knows_them(model: DiffusionModel, monkeypatch) -> None:
    monkeypatch.setattr(model, "framing", ((0.25, 0.25), (0.75, 0.25)))
    photo = np.full((90, 120, 3), 200, np.uint8)
    photo[28:33, 38:43] = (255, 0, 0)  # the left eye
    rows = [
        {"key": f"x/{i}", "identity": "x", "bytes": _png(pixels)}
        for i, pixels in enumerate((photo, np.zeros_like(photo)))
    ]
    pool = PhotoPool.load(rows, model, detector=_Detector())
    assert pool.keys == ["x/0"] and pool.faceless == ["x/1"] and not pool.broken
    red = (pool.pixels[0, 0].int() - pool.pixels[0, 1].int()) > 100
    at = red.nonzero().float().mean(0)  # the eye, at a quarter of 64 px
    assert torch.allclose(at, torch.tensor([16.0, 16.0]), atol=1.5)
    with pytest.raises(PhotosError, match=r"got 1 in which no face was found \(x/1\)"):
        PhotoPool.load(rows[1:], model, detector=_Detector())
