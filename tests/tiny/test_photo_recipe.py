"""tiny-photo: the base loads, its photos pack and unpack, captions and warps do what they say."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.tiny import nets
from bs_ray.tiny.photo import captions
from bs_ray.tiny.photo.autoencoder import whiten
from bs_ray.tiny.photo.photos import Photos, encoded, save_pack, tightened
from bs_ray.tiny.photo.text import PhraseTable
from bs_ray.tiny.photo.warp import bend

NOBODY = dict.fromkeys(captions.LABELS, float("nan"))


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return load_base("tiny-photo")


def test_the_base_is_an_sdxl_of_128_px(model: DiffusionModel) -> None:
    assert model.family == "sdxl" and model.native_px == 128
    assert model.latent_shape == (8, 16, 16)


def test_captions_say_what_is_known_and_can_be_read_back() -> None:
    labels = NOBODY | {"smile": 0.9, "age": 41.0, "woman": 1.0, "distorted": 0.0}
    rng = random.Random(0)
    found = [captions.caption(labels, rng) for _ in range(200)]
    slots = list(captions.slots())
    said = [dict(zip(slots, captions.slot_values(text), strict=True)) for text in found]
    assert {row["smile"] for row in said} == {0, 2}
    assert {row["noun"] for row in said} == {0, 2}
    assert {row["years"] for row in said} == {0, 41 // 4 + 1}
    assert {row["glasses"] for row in said} == {0} == {row["beard"] for row in said}
    assert any("41 years old" in text for text in found)


def test_a_distortion_is_always_said() -> None:
    rng = random.Random(0)
    labels = NOBODY | {"age": 30.0, "smile": 0.0, "glasses": 0.0, "beard": 0.0, "distorted": 1.0}
    words = captions.PHRASES["distorted"][1][1]
    found = [captions.caption(labels, rng) for _ in range(200)]
    assert all(any(word in text for word in words) for text in found)


def test_phrases_are_looked_up_as_the_tokenizer_reads_them() -> None:
    rng = random.Random(1)
    tokenizer = nets.build_tokenizer(captions.vocabulary(), "!")
    table = PhraseTable(tokenizer)
    for _ in range(300):
        labels = {n: rng.uniform(0, 95 if n == "age" else 1) for n in captions.LABELS}
        text = captions.caption(labels, rng)
        assert table.ids(text) == nets.tokenize(tokenizer, [text])[0].tolist()
    assert table.ids("") == nets.tokenize(tokenizer, [""])[0].tolist()


def test_a_pack_gives_back_its_pictures_and_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(5)]
    pictures = [picture.resize((128, 128), Image.Resampling.BICUBIC) for picture in small]
    labels = {n: np.arange(5, dtype=np.float32) for n in captions.LABELS}
    labels["smile"][2] = np.nan
    save_pack(tmp_path, [encoded(p) for p in pictures], labels, np.arange(5) == 3)
    photos = Photos.load(tmp_path)
    assert photos.rows().tolist() == [0, 1, 2, 4] and photos.rows(held=True).tolist() == [3]
    assert photos.labels["smile"].isnan().tolist() == [False, False, True, False, False]
    for seen, picture in zip(photos.pixels, pictures, strict=True):
        difference = seen.permute(1, 2, 0).numpy().astype(int) - np.asarray(picture).astype(int)
        assert np.abs(difference).mean() < 4


def test_an_empty_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected packed photos"):
        Photos.load(tmp_path)


def test_a_tight_picture_shows_the_middle_of_a_wide_one() -> None:
    x = torch.zeros(1, 3, 128, 128)
    left, right = (int(128 * share) for share in (0.336, 0.664))
    x[:, :, 44:48, left - 2 : left + 2] = 1
    x[:, :, 44:48, right - 2 : right + 2] = 1
    columns = tightened(x)[0, 0].amax(0)
    bright = (columns > 0.5).nonzero()[:, 0].float() / 128
    assert bright.min() == pytest.approx(0.3, abs=0.03)
    assert bright.max() == pytest.approx(0.69, abs=0.03)


@pytest.mark.parametrize("tight", [False, True])
def test_a_bent_face_changes_near_its_parts_alone(tight: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(32, 3, 16, 16, generator=rng), (128, 128))
    moved = (bend(x, torch.full((32,), tight), rng) - x).abs().mean(1)
    assert (moved.mean((1, 2)) > 0.002).all()
    assert float(moved[:, :6].mean()) < 0.1 * float(moved[:, 40:].mean())


def test_whitening_changes_latents_and_no_round_trip(model: DiffusionModel) -> None:
    from bs_ray.tiny.photo.nets import build_vae

    torch.manual_seed(0)
    vae = build_vae().eval()
    x = torch.rand(4, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        before, round_trip = vae.encode(x).latent_dist, vae(x).sample
        mean, deviation = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        whiten(vae, mean, deviation)
        after = vae.encode(x).latent_dist
        assert torch.allclose(vae(x).sample, round_trip, atol=1e-4)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(8), atol=1e-3)
    scale = deviation[:, None, None]
    assert torch.allclose(after.std * scale, before.std, atol=1e-4)


def test_the_recipe_needs_no_ray() -> None:
    """Where only torch is at hand: a machine that lends its GPU."""
    code = "import sys; sys.modules['ray'] = None; import bs_ray.tiny.photo.train"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_every_stage_trains_on_a_small_pack(tmp_path: Path) -> None:
    from bs_ray.tiny.photo.train import train

    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((128, 128))
        for _ in range(24)
    ]
    labels = {n: rng.random(24).astype(np.float32) for n in captions.LABELS}
    save_pack(tmp_path / "pack", [encoded(p) for p in pictures], labels, np.arange(24) >= 16)
    train(
        tmp_path / "pack",
        tmp_path / "base",
        tmp_path / "work",
        device="cpu",
        seconds=None,
        steps=2,
    )
    assert load_base(str(tmp_path / "base")).native_px == 128
    assert list((tmp_path / "work" / "sheets").glob("photo-unet-*.png"))
