"""Confidence intervals of 95%, for figures that are means over faces, and for differences."""

from __future__ import annotations

import numpy as np
from scipy import stats

_LEVEL = 0.95
DRAWS = 2000


def interval(values: np.ndarray) -> list[float] | None:
    """[low, high] for the mean of `values` [F], one for each face; None for a single face.

    Numbers get Student's interval. Booleans, whose mean is a share, get Wilson's (1927), which
    stays honest for shares near 0 and 1: 8 faces of 8 make it [0.68, 1].
    """
    if len(values) < 2:
        return None
    if values.dtype == bool:
        hits = stats.binomtest(int(values.sum()), len(values))
        found = hits.proportion_ci(_LEVEL, method="wilson")
        return [float(found.low), float(found.high)]
    reach = stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return [float(values.mean() - reach), float(values.mean() + reach)]


def resampled(count: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The bootstrap's weights, float64 [draws, count]: each row is one draw of as many faces, with
    replacement, and sums to 1. Arms that share the rows are paired by face."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws) / count


def percentiles(drawn: np.ndarray) -> list[float] | None:
    """[low, high] of what the draws [B] gave; None where they gave nothing."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    tail = 50 * (1 - _LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return [float(low), float(high)]
