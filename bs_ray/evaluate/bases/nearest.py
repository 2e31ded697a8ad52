"""Whether generations are copies: how near each is to the nearest photo that a base learned from.

Among many photos almost everyone has a lookalike, so people that the base never saw are compared
with the same photos in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from bs_ray.evaluate.intervals import interval
from bs_ray.images.sheets import draw_strip
from bs_ray.judges.judge import IdentityJudge

_SHOWN = 12


def nearest_figures(
    judge: IdentityJudge, drawn: np.ndarray, photos: np.ndarray, beside: np.ndarray
) -> dict[str, Any]:
    """By `generations` and `photos`: the median and least distance to the nearest of `beside`, and
    where the judge states a limit the share below it.

    drawn [G, D], photos [F, D], beside [S, D]: embeddings.
    """
    found: dict[str, Any] = {"judge": judge.card.name, "compared_with": len(beside)}
    for name, ones in (("generations", drawn), ("photos", photos)):
        if not len(ones):
            continue
        far, _ = nearest(judge, ones, beside)
        found[name] = {"n": len(far), "median": float(np.median(far)), "least": float(far.min())}
        if math.isfinite(judge.same_below):
            same = far < judge.same_below
            found[name] |= {"share_below": float(same.mean()), "interval": interval(same)}
    return found | {"same_below": judge.same_below}


def nearest(
    judge: IdentityJudge, ones: np.ndarray, beside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `ones` [N, D] the distance to the nearest of `beside`, and which that is: [N]."""
    far = np.stack([judge.between(beside, one[None]) for one in ones])
    which = far.argmin(1)
    return far[np.arange(len(far)), which], which


def nearest_sheet(
    judge: IdentityJudge,
    drawn: Sequence[tuple[np.ndarray, np.ndarray]],
    beside: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Image.Image:
    """The generations that are nearest to a photo above these photos, with their distances.

    Both are pairs of a picture uint8 [H, W, 3], all of one size, and its embedding.
    """
    ones, others = (np.stack([e for _, e in pairs]) for pairs in (drawn, beside))
    far, which = nearest(judge, ones, others)
    order = far.argsort()[:_SHOWN]
    pictures = [[drawn[n][0] for n in order], [beside[which[n]][0] for n in order]]
    columns = [f"{far[n]:.2f}" for n in order]
    return draw_strip(pictures, columns, ["generated", "photo"], f"distance by {judge.card.name}")
