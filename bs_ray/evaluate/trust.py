"""The test of an identity judge on the user's own photos: pairs of one person, and of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bs_ray.evaluate.intervals import interval
from bs_ray.evaluate.splits import Item
from bs_ray.images.faces import FaceDetector
from bs_ray.judges.judge import IdentityJudge, subject_of


def pair_rows(
    judges: Sequence[IdentityJudge],
    pairs: Sequence[tuple[Item, Item]],
    detector: FaceDetector | None,
) -> list[dict[str, Any]]:
    """A row for each judge and pair: two photos of one person, and of two neighbours in the list.

    Photos that cannot be read or show no face make no row.
    """
    rows = []
    for judge in judges:
        seen = [[_embedded(judge, item, detector) for item in pair] for pair in pairs]
        for place, (one, other) in enumerate(seen):
            for same, with_it in ((True, other), (False, seen[place - 1][1])):
                if one is None or with_it is None or (not same and len(pairs) < 2):
                    continue
                far = float(judge.between(one, with_it))
                rows.append({"judge": judge.card.name, "same": same, "distance": far})
    return rows


def _embedded(judge: IdentityJudge, item: Item, detector: FaceDetector | None) -> np.ndarray | None:
    if item.pixels is None:
        return None
    [found] = judge.embed(subject_of(item.pixels, detector), [item.pixels])
    return found if np.isfinite(found).all() else None


def identity_test(judges: Sequence[IdentityJudge], rows: pd.DataFrame) -> dict[str, Any]:
    """By judge: pairs of one person and of two, their median distances, and where the judge states
    a limit the share that it tells right."""
    found: dict[str, dict[str, Any]] = {}
    for judge in judges:
        own = rows[rows["judge"] == judge.card.name] if len(rows) else rows
        if not len(own):
            continue
        same, other = (own.loc[own["same"] == kind, "distance"] for kind in (True, False))
        found[judge.card.name] = {
            "same_pairs": len(same),
            "other_pairs": len(other),
            "same_median": float(same.median()),
            "other_median": float(other.median()),
        }
        if math.isfinite(judge.same_below):
            right = ((own["distance"] < judge.same_below) == own["same"]).to_numpy(bool)
            found[judge.card.name] |= {
                "same_below": judge.same_below,
                "right": float(right.mean()),
                "right_interval": interval(right),
            }
    return found
