"""tiny-photo: the base loads, its photos pack and unpack, captions and warps do what they say."""

import io
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

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
    save_pack(tmp_path / "pack", [encoded(p) for p in pictures], labels, np.arange(5) == 3)
    photos = Photos.load(tmp_path / "pack")
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


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Smooth noise under names as LFW and UTKFace give them."""
    for package in ("dlib", "face_recognition_models"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package} to find landmarks: pip install 'bs-ray[judges]'")
    rng = np.random.default_rng(0)
    folder = tmp_path / "faces"
    names = [f"Person_{i}/Person_{i}_0001.jpg" for i in range(20)] + ["7_0_0_2017.jpg"]
    for name in names:
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small.resize((250, 250), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def test_one_command_packs_once_and_goes_on_where_it_stopped(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bs_ray.tiny import build as building
    from bs_ray.tiny.photo.readers import PerceptualStage, ReaderStage

    reports: list[tuple[str, int, int]] = []

    class Board:
        def report(self, stage: str, step: int, total: int, numbers: dict[str, float]) -> None:
            assert np.isfinite(numbers["loss"])
            reports.append((stage, step, total))

    def here(plan: dict, *_: object) -> None:
        building._worker({**plan, "board": Board()})

    monkeypatch.setattr(building, "_train", here)
    monkeypatch.setattr(building, "get_device", lambda: torch.device("cpu"))
    for stage in (ReaderStage, PerceptualStage):
        monkeypatch.setattr(stage, "batch", 4)
    screen = io.StringIO()

    def build(*stages: str, faces: tuple[Path, ...]) -> None:
        places = {"out": tmp_path / "base", "work": tmp_path / "work"}
        console = Console(file=screen, width=200)
        building.build(
            **places, world="photos", faces=faces, stages=",".join(stages), share=0.006,
            console=console,
        )  # fmt: skip

    with pytest.raises(ValueError, match="faces: got none, and no packed ones in"):
        build("photo-reader", faces=())
    build("photo-reader", faces=(faces,))
    assert reports == [("photo-reader", 10, 15), ("photo-reader", 15, 15)]
    pack = tmp_path / "work" / "pack"
    photos, packed = Photos.load(pack), {f: f.stat().st_mtime_ns for f in pack.iterdir()}
    assert len(photos.rows()) + len(photos.rows(held=True)) == len(photos.pixels) <= 21
    assert len(photos.rows()) >= 12
    # The same command does what is left, from the photos as they are packed.
    reports.clear()
    build("photo-reader", "photo-perceptual", faces=())
    assert reports == [("photo-perceptual", 10, 10)]
    assert "holds them packed already" in screen.getvalue()
    assert {f: f.stat().st_mtime_ns for f in pack.iterdir()} == packed
    judges = sorted(f.name for f in (tmp_path / "base" / "judges").iterdir())
    assert judges == ["perceptual.safetensors", "reader.safetensors"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"world": "planets"}, "world: got 'planets'; expected one of drawn, photos"),
        ({"faces": [Path("lfw.tgz")]}, "expected --world photos"),
        ({"world": "photos", "stages": "unet"}, "got unet; expected some of photo-reader, photo-"),
    ],
)
def test_a_recipe_that_there_is_not_is_refused(wrong: dict, message: str, tmp_path: Path) -> None:
    from bs_ray.tiny.build import build

    with pytest.raises(ValueError, match=message):
        build(tmp_path / "base", tmp_path / "work", **wrong)


@pytest.mark.slow
@pytest.mark.ray
def test_the_whole_photo_recipe_runs_on_ray_train(faces: Path, tmp_path: Path) -> None:
    from bs_ray.tiny.build import build

    places = {"out": tmp_path / "base", "work": tmp_path / "work"}
    build(**places, world="photos", faces=[faces], share=0.001)
    assert load_base(str(tmp_path / "base")).native_px == 128
    assert list((tmp_path / "work" / "sheets").glob("photo-unet-*.png"))


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
