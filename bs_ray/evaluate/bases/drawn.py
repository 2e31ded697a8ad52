"""A base of the tiny world by itself: its round trips and its captions.

Held-out faces of that world are rendered, and their every attribute is a number that is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from bs_ray.evaluate.bases import Sheet
from bs_ray.evaluate.intervals import interval
from bs_ray.evaluate.metrics import psnr_figures, row_correlation
from bs_ray.evaluate.splits.tiny import HELD_OUT_SEED
from bs_ray.judges.attributes import AttributeReader
from bs_ray.judges.load import WorldJudges
from bs_ray.models import base_folder
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import sample_euler
from bs_ray.tiny import captions, faces

CLASSES = ("smile", "age", "chubby", "glasses", "hair_length")


class DrawnBase:
    """Measures a base of the tiny world with that world's own attribute reader."""

    digest = ""

    def __init__(self, base: str, total: int):
        """Raises BaseNotFound for a base without the judges of this world."""
        self.reader, self._total = WorldJudges.load(base_folder(base)).reader, total

    def rows(self, model: DiffusionModel, first: int, count: int) -> list[dict]:
        """A row of `round_trips` and one of `captioned`, together, for each picture."""
        trips = round_trips(model, self.reader, first, count, self._total)
        pictures = captioned(model, self.reader, first, count, self._total)
        both = zip(trips, pictures, strict=True)
        return [{"item": first + i} | trip | picture for i, (trip, picture) in enumerate(both)]

    def figures(self, rows: pd.DataFrame) -> dict:
        """See BaseMeasure."""
        rows = rows.sort_values("item")
        return {
            "images": len(rows),
            **vae_figures(rows, self.reader.names),
            **caption_figures(rows),
        }

    def sheets(self, rows: pd.DataFrame) -> list[Sheet]:
        """None: the tiny world is known."""
        return []


@torch.no_grad()
def round_trips(
    model: DiffusionModel, reader: AttributeReader, first: int, count: int, total: int
) -> list[dict]:
    """Faces `first` to `first + count` of `total` held-out ones, through the autoencoder and back.

    A row's `truth`, `original` and `round_trip` [A] are the attributes as drawn, and as they are
    read before and after; `squared_error` is the mean over the picture, on [-1, 1].
    """
    drawn = faces.sample_scenes(total, HELD_OUT_SEED)
    scene = {name: column[first : first + count] for name, column in drawn.items()}
    images = faces.render(scene)
    again = model.decode(model.encode(images)).clamp(-1, 1)
    columns = {
        "squared_error": (images - again).square().mean((1, 2, 3)),
        "truth": faces.attribute_matrix(scene, reader.names),
        "original": reader.read(images),
        "round_trip": reader.read(again),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


@torch.no_grad()
def captioned(
    model: DiffusionModel,
    reader: AttributeReader,
    first: int,
    count: int,
    total: int,
    seed: int = 0,
    steps: int = 20,
    guidance_scale: float = 7.5,
) -> list[dict]:
    """Pictures `first` to `first + count` of `total`, generated from captions that name CLASSES.

    A row's `true` [CLASSES] says of which the picture shows the side that its caption names.
    """
    drawn = np.random.default_rng(seed).integers(0, 2, (total, len(CLASSES)))
    wanted = drawn[first : first + count]
    prompts = [class_prompt(row) for row in wanted]
    keys = [f"class-{first + i}" for i in range(count)]
    latents = sample_euler(
        model, prompts, keys, seed=seed, steps=steps, guidance_scale=guidance_scale
    )
    read = reader.read(model.decode(latents).clamp(-1, 1)).numpy()
    own = read[:, [reader.names.index(name) for name in CLASSES]]
    return [{"true": row.tolist()} for row in (own > 0.5) == wanted.astype(bool)]


def vae_figures(rows: pd.DataFrame, names: Sequence[str]) -> dict:
    """Of rows of `round_trips`: those of `psnr_figures`, and how the reader agrees with the truth.

    read_original, read_round_trip: by attribute, the correlation of reading and truth before and
    after the autoencoder.
    """
    truth = np.stack(rows["truth"].to_list()).T

    def agreement(column: str) -> dict[str, float]:
        found = row_correlation(np.stack(rows[column].to_list()).T, truth)
        return {name: round(float(r), 4) for name, r in zip(names, found, strict=True)}

    return {
        **psnr_figures(rows["squared_error"].to_numpy()),
        "read_original": agreement("original"),
        "read_round_trip": agreement("round_trip"),
    }


def caption_figures(rows: pd.DataFrame) -> dict:
    """Of rows of `captioned`: `class_accuracy` by attribute, and `class_intervals`, of 95%."""
    hits = dict(zip(CLASSES, np.stack(rows["true"].to_list()).T, strict=True))
    return {
        "class_accuracy": {name: round(float(own.mean()), 4) for name, own in hits.items()},
        "class_intervals": {name: interval(own) for name, own in hits.items()},
    }


def class_prompt(row: np.ndarray) -> str:
    """A caption that names every class, such as "a photo of a person, smiling, old, ..."."""
    words = [captions.PHRASES[name][int(side)][0] for name, side in zip(CLASSES, row, strict=True)]
    return ", ".join(["a photo of a person", *words])
