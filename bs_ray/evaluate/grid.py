"""The table of measurements as arrays: what one arm did on one split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.judging import Measure
from bs_ray.evaluate.metrics import NOISE, NOISE_OF_SPREAD


@dataclass(frozen=True)
class Grid:
    """Rows of one arm on one split. F items, K strengths."""

    rows: pd.DataFrame
    """Of sound items, sorted by item and strength."""
    photos: pd.DataFrame
    """What was read off the items' photos, sorted by item."""
    left_out: dict[str, int]
    """Why items could not be measured -> how many."""

    @classmethod
    def of(cls, table: pd.DataFrame, split: str, arm: Arm) -> Grid:
        """That part of the table."""
        own = table[
            (table["split"] == split) & (table["group"] == arm.group) & (table["arm"] == arm.name)
        ]
        problems = Counter(text.partition(":")[0] for text in own["problem"] if text)
        sound = own[own["problem"] == ""].sort_values(["item", "strength"])
        swept = sound[sound["strength"].notna()]
        # A photo has a row of its own where strength 0 is another picture.
        photos = pd.concat([sound[sound["strength"].isna()], swept[swept["strength"] == 0]])
        photos = photos.drop_duplicates("item").sort_values("item")
        return cls(swept, photos, dict(problems))

    @cached_property
    def items(self) -> np.ndarray:
        """Numbers of the items: int64 [F]."""
        return self.rows["item"].unique()

    @cached_property
    def seeds(self) -> np.ndarray:
        """Of each item's noise: int64 [F]."""
        return self.rows.drop_duplicates("item")["seed"].to_numpy()

    @cached_property
    def strengths(self) -> np.ndarray:
        """float64 [K], ascending."""
        return np.sort(self.rows["strength"].unique())

    def column(self, name: str) -> np.ndarray:
        """float64 [F, K]."""
        return self.rows[name].to_numpy(float).reshape(-1, max(1, len(self.strengths)))

    def columns(self, measures: list[Measure]) -> np.ndarray:
        """float64 [F, K, A]."""
        shape = (len(self.items), len(self.strengths))
        found = [self.column(measure.column) for measure in measures]
        return np.stack(found, axis=-1) if found else np.zeros((*shape, 0))

    def of_photos(self, measures: list[Measure]) -> np.ndarray:
        """float64 [F, A]."""
        return self.photos[[measure.column for measure in measures]].to_numpy(float)

    def at(self, strength: float) -> int:
        """Where a strength stands."""
        return int(np.flatnonzero(self.strengths == strength)[0])


def spread_of(photos: pd.DataFrame, measure: Measure) -> float:
    """What a move of this reading is divided by, so that moves of several can be added: 1 where it
    has a range, else its standard deviation among the photos."""
    if measure.has_range:
        return 1.0
    found = float(photos[measure.column].std())
    return found if found > 0 else 1.0


def noise_of(photos: pd.DataFrame, measure: Measure) -> float:
    """A smaller fall of this reading counts for none."""
    if measure.has_range:
        return NOISE
    return NOISE_OF_SPREAD * spread_of(photos, measure)
