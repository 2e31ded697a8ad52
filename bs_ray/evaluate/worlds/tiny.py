"""The tiny bases' own world: rendered faces whose every attribute is a number that is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from bs_ray.evaluate.metrics import psnr_db, row_correlation
from bs_ray.images.pixels import pixels_of
from bs_ray.judges.attributes import AttributeReader
from bs_ray.judges.load import WorldJudges
from bs_ray.models import base_folder
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import sample_euler
from bs_ray.tiny import captions, faces

HELD_OUT_SEED = 1_000_000
"""The recipe of the tiny bases draws no scene from this seed on."""
CLASSES = ("smile", "age", "chubby", "glasses", "hair_length")
_BATCH = 32


class TinyWorld:
    """A World that is rendered on demand."""

    def __init__(self, base: str):
        """Raises BaseNotFound for a base without the judges of this world."""
        self.judges = WorldJudges.load(base_folder(base))

    def photos(
        self, split: str, first: int, count: int, seed: int, enlarged: int = 1
    ) -> np.ndarray:
        """See World. Photos of "faces" are plain, those of "wild" have a camera's faults."""
        scene = faces.sample_scenes(count, HELD_OUT_SEED + seed + first)
        if split == "faces":
            return pixels_of(faces.render(scene))
        images = faces.render_wild(scene, HELD_OUT_SEED + seed + first)
        if enlarged > 1:
            images = F.interpolate(images, scale_factor=enlarged, mode="bicubic").clamp(-1, 1)
        return pixels_of(images)

    def prompts(self, attribute: str, first: int, count: int, seed: int) -> list[str]:
        """See World."""
        scene = faces.sample_scenes(count, HELD_OUT_SEED + seed + first)
        rng = random.Random(first)
        own = {phrase for ends in captions.PHRASES[attribute] for phrase in ends}
        found = []
        for row in range(count):
            true = [p for p in captions.phrases(scene, row, rng) if p not in own]
            found.append(", ".join(["a photo of a person", *rng.sample(true, 4)]))
        return found

    def base_figures(
        self, model: DiffusionModel, count: int, report: Callable[[int], None]
    ) -> dict:
        """See World: round trips through the autoencoder, and captions that come out true."""
        reader = self.judges.reader
        return {
            "images": count,
            **vae_figures(model, reader, count),
            **caption_figures(model, reader, count, report=report),
        }


@torch.no_grad()
def vae_figures(model: DiffusionModel, reader: AttributeReader, count: int) -> dict:
    """`vae_psnr_db` on held-out faces, and by attribute how well the reader agrees with the truth.

    read_original, read_round_trip: correlation of reading and truth before and after the VAE.
    """
    scene = faces.sample_scenes(count, HELD_OUT_SEED)
    images = faces.render(scene)
    parts = [model.decode(model.encode(part)).clamp(-1, 1) for part in images.split(_BATCH)]
    again = torch.cat(parts)
    truth = faces.attribute_matrix(scene, reader.names).T.numpy()

    def agreement(pictures: torch.Tensor) -> dict[str, float]:
        read = torch.cat([reader.read(part) for part in pictures.split(_BATCH)]).T.numpy()
        found = row_correlation(read, truth)
        return {name: round(float(r), 4) for name, r in zip(reader.names, found, strict=True)}

    return {
        "vae_psnr_db": psnr_db(images.numpy(), again.numpy()),
        "read_original": agreement(images),
        "read_round_trip": agreement(again),
    }


@torch.no_grad()
def caption_figures(
    model: DiffusionModel,
    reader: AttributeReader,
    count: int,
    seed: int = 0,
    steps: int = 20,
    guidance_scale: float = 7.5,
    report: Callable[[int], None] = lambda pictures: None,
) -> dict:
    """`class_accuracy` by attribute: generate from captions, and read which side each shows.

    report(pictures) is called with how many pictures were generated since the last call.
    """
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, 2, (count, len(CLASSES)))
    hits = []
    for first in range(0, count, _BATCH):
        rows = wanted[first : first + _BATCH]
        prompts = [class_prompt(row) for row in rows]
        keys = [f"class-{first + i}" for i in range(len(rows))]
        latents = sample_euler(
            model, prompts, keys, seed=seed, steps=steps, guidance_scale=guidance_scale
        )
        read = reader.read(model.decode(latents).clamp(-1, 1)).numpy()
        own = read[:, [reader.names.index(name) for name in CLASSES]]
        hits.append((own > 0.5) == rows.astype(bool))
        report(len(rows))
    share = np.concatenate(hits).mean(0)
    return {"class_accuracy": dict(zip(CLASSES, share.round(4).tolist(), strict=True))}


def class_prompt(row: np.ndarray) -> str:
    """A caption that names every class, such as "a photo of a person, smiling, old, ..."."""
    words = [captions.PHRASES[name][int(side)][0] for name, side in zip(CLASSES, row, strict=True)]
    return ", ".join(["a photo of a person", *words])
