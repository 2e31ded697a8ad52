"""A base of photographs by itself: captions, round trips, how near its generations are to photos.

Judges of our own making read brightness, so that every figure can be told by hand.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bs_ray.config import EvalJob
from bs_ray.config.evaluate import PhotoSplit
from bs_ray.evaluate.bases import base_measure
from bs_ray.evaluate.bases.nearest import nearest_figures
from bs_ray.evaluate.bases.photos import OLD_FROM, SIDES, PhotoBase, caption, wanted
from bs_ray.evaluate.splits.photos import open_photos
from bs_ray.evaluate.tables import tables_of
from bs_ray.judges.judge import Card, Embedding, Reading
from bs_ray.judges.load import Panel
from bs_ray.models import load_base


class Bright:
    """Reads how bright a picture is."""

    card, needs_face = Card("bright", "1", "ours", "brightness"), False
    readings = (Reading("woman", "probability"), Reading("age", "years"))

    def read(self, subject, pictures):
        return np.array([[p.mean() / 255, p.mean()] for p in pictures])


class Colour(Embedding):
    """Tells people apart by their mean colour."""

    card, needs_face, same_below = Card("colour", "1", "ours", "mean colour"), False, 10.0

    def embed(self, subject, pictures):
        return np.array([p.mean((0, 1)) for p in pictures], np.float32)

    def between(self, one, other):
        return np.linalg.norm(np.asarray(one, np.float64) - other, axis=-1)


PANEL = Panel(identity=(Colour(),), attributes=(Bright(),))


@pytest.fixture(scope="module")
def job(random_base: Path, saved: Callable[..., bytes], tmp_path_factory) -> EvalJob:
    """On eight people, of whom P_7 alone is held out."""
    folder = tmp_path_factory.mktemp("lfw")
    for n in range(8):
        photo = saved(Image.effect_noise((90, 70), 10 * n + 5).convert("RGB"), "JPEG")
        (folder / f"P_{n}").mkdir()
        (folder / f"P_{n}" / f"P_{n}_0001.jpg").write_bytes(photo)
    split = PhotoSplit(photos=str(folder), people="held-out")
    return EvalJob(
        name="t", base=str(random_base), sliders=["a"], splits={"p": split}, base_images=2
    )


def test_rows_of_a_real_base(job: EvalJob) -> None:
    photos = open_photos(job.splits["p"], 0, job.base_images)
    measure = PhotoBase(job, photos, PANEL)
    model = load_base(job.base)
    rows = pd.DataFrame(measure.rows(model, 0, 1) + measure.rows(model, 1, 1))
    assert rows["of"].value_counts().to_dict() == {"neighbour": 7, "generation": 2, "photo": 1}
    [photo] = rows[rows["of"] == "photo"].to_dict("records")
    assert 0.001 < photo["squared_error"] < 4 and photo["again"] != photo["picture"]

    found = measure.figures(rows)
    assert (found["images"], found["photos"]) == (2, 1)
    error = 4 / 10 ** (found["vae_psnr_db"] / 10)
    assert error == pytest.approx(photo["squared_error"])
    assert found["class_accuracy"]["smile"] is None  # no judge here reads it
    assert found["nearest"]["compared_with"] == 7
    assert [sheet.name for sheet in measure.sheets(rows)] == [
        "generations",
        "round-trips",
        "nearest",
    ]


def row(of: str, item: int, **values) -> dict:
    return {"of": of, "item": item, "problem": "", "picture": b"", **values}


def test_figures_by_hand(job: EvalJob) -> None:
    """A generation of which no face is found counts as wrong; so does one at the other side."""
    assert len({caption(n) for n in range(8)}) == 8 and caption(8) == caption(0)
    assert caption(5) == "a photo of a man, young, smiling"
    assert wanted(5) == {"man": True, "old": False, "smile": True} and OLD_FROM == 47
    drawn = [
        row("generation", n, woman=0.2 if wanted(n)["man"] else 0.8, age=46 + 2 * wanted(n)["old"])
        for n in range(6)
    ]
    drawn[5]["woman"] = 0.9
    drawn.append(row("generation", 6) | {"problem": "no face"})
    trips = [row("photo", n, squared_error=0.04) for n in range(3)]
    rows = pd.DataFrame([*drawn, *trips])
    found = PhotoBase(job, open_photos(job.splits["p"], 0), PANEL).figures(rows)
    assert found["class_accuracy"] == {"man": 5 / 7, "old": 6 / 7, "smile": None}
    assert found["without_face"] == {"generations": 1, "photos": 0}
    assert found["vae_psnr_db"] == pytest.approx(20)
    assert set(SIDES) == set(found["class_rules"]) and "kid" not in found

    figures = {"base": found, "sliders": {}, "splits": {}, "interference": {"a": {}}}
    shown = {names[0]: cells[0].text for names, cells in tables_of(figures)[1].rows}
    assert shown["captions: old"] == "85.7%" and shown["captions: smile"] == "–"


def test_lookalikes_are_told_from_copies() -> None:
    photos = np.array([[0.0, 0, 0], [100, 0, 0]])
    drawn = np.array([[3.0, 4, 0], [100, 60, 80]])
    found = nearest_figures(Colour(), drawn, drawn[1:], photos)
    assert found["generations"]["least"] == 5 and found["generations"]["median"] == 52.5
    assert found["generations"]["share_below"] == 0.5 and found["photos"]["share_below"] == 0


def test_a_base_of_photographs_wants_photos(job: EvalJob) -> None:
    photographs = job.model_copy(update={"base": "tiny-photo"})
    with pytest.raises(ValueError, match="got base tiny-photo without photos; expected a split"):
        base_measure(photographs, {}, {})
