"""The shipped base is what the README says: a really trained, small SDXL with judges."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from bs_ray.evaluate.bases.drawn import (
    CLASSES,
    HELD_OUT_SEED,
    caption_figures,
    captioned,
    round_trips,
    vae_figures,
)
from bs_ray.judges.load import WorldJudges
from bs_ray.models import EMBEDDED, load_base
from bs_ray.tiny import faces

TINY = EMBEDDED["tiny"]


@pytest.fixture(scope="module")
def model():
    return load_base("tiny")


@pytest.fixture(scope="module")
def judges() -> WorldJudges:
    return WorldJudges.load(TINY)


def test_it_is_small_and_holds_no_pickle() -> None:
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30 << 20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_diffusers_loads_and_generates() -> None:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(TINY, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a photo of a woman, smiling, long hair",
        num_inference_steps=12,
        guidance_scale=4.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    reader = WorldJudges.load(TINY).reader
    read = dict(zip(reader.names, reader.read(image * 2 - 1)[0].tolist(), strict=True))
    assert image.shape == (1, 3, 64, 64)
    assert read["smile"] > 0.5 and read["hair_length"] > 0.5 and read["man"] < 0.5


def test_round_trips_keep_the_face(model, judges: WorldJudges) -> None:
    rows = pd.DataFrame(round_trips(model, judges.reader, 0, 128, total=128))
    found = vae_figures(rows, judges.reader.names)
    assert found["vae_psnr_db"] >= 33
    for name in CLASSES:
        assert found["read_round_trip"][name] >= 0.95 * found["read_original"][name]
        assert found["read_original"][name] > 0.95


def test_captions_come_out_true(model, judges: WorldJudges) -> None:
    rows = pd.DataFrame(captioned(model, judges.reader, 0, 96, total=96))
    found = caption_figures(rows)["class_accuracy"]
    assert min(found.values()) >= 0.9, found


def test_the_identity_judge_knows_people_apart(judges: WorldJudges) -> None:
    scene = faces.sample_scenes(64, HELD_OUT_SEED)
    one, other = faces.render(scene), faces.render(faces.same_person(scene, HELD_OUT_SEED + 1))
    same = judges.identity.similarity(one, other)
    different = judges.identity.similarity(one, other.roll(1, 0))
    assert float((same > different).float().mean()) > 0.9


def test_the_perceptual_judge_orders_changes(judges: WorldJudges) -> None:
    images = faces.render(faces.sample_scenes(32, HELD_OUT_SEED))
    noisy = [
        images + s * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        for s in (0.0, 0.03, 0.1, 0.3)
    ]
    distances = [float(judges.perceptual.distance(images, other).mean()) for other in noisy]
    assert distances[0] == 0 and distances == sorted(distances)


def test_the_clip_judge_prefers_the_truth(judges: WorldJudges) -> None:
    scene = faces.sample_scenes(64, HELD_OUT_SEED)
    images = faces.render(scene)
    margin = judges.clip.score(images, "a photo of a person, glasses")
    margin -= judges.clip.score(images, "a photo of a person, no glasses")
    worn = scene["glasses"] > 0.5
    assert float(margin[worn].mean()) > float(margin[~worn].mean())


def test_the_weights_ship_in_the_package() -> None:
    assert Path(faces.__file__).parent / "weights" == TINY
