"""How good the tiny base itself is: autoencoder fidelity, and captions that come out true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bs_ray.evaluate.metrics import psnr_db, row_correlation
from bs_ray.evaluate.sweep import HELD_OUT_SEED
from bs_ray.judges.attributes import AttributeReader
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import sample_euler
from bs_ray.tiny import captions, faces

CLASSES = ("smile", "age", "chubby", "glasses", "hair_length")
_BATCH = 32


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
    drawn: Callable[[int], None] = lambda pictures: None,
) -> dict:
    """`class_accuracy` by attribute: generate from captions, read which side each comes out on.

    drawn: told of pictures as they come.
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
        drawn(len(rows))
    share = np.concatenate(hits).mean(0)
    return {"class_accuracy": dict(zip(CLASSES, share.round(4).tolist(), strict=True))}


def class_prompt(row: np.ndarray) -> str:
    """A caption that names every class, such as "a photo of a person, smiling, old, ..."."""
    words = [captions.PHRASES[name][int(side)][0] for name, side in zip(CLASSES, row, strict=True)]
    return ", ".join(["a photo of a person", *words])
