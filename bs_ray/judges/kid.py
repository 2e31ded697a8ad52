"""KID: how far two sets of pictures are from each other, from their features.

Binkowski et al., "Demystifying MMD GANs" (arXiv 1801.01401).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kid:
    """The mean over random subsets, and the standard deviation between them."""

    mean: float
    sd: float
    size: int
    """Pictures of each set in a subset."""


def kid(
    one: np.ndarray, other: np.ndarray, subsets: int = 100, size: int | None = None, seed: int = 0
) -> Kid:
    """KID of two sets of features [N, D] and [M, D], float64 inside.

    size: pictures of each set in a subset; all, but at most 1,000, where left out. Raises
    ValueError for fewer than two pictures, and for features of different width.
    """
    least = min(len(one), len(other))
    if least < 2 or one.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"KID: got features {list(one.shape)} and {list(other.shape)}; expected two or more "
            "rows of one width on both sides"
        )
    size = min(size or 1000, least)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        a = one[rng.choice(len(one), size, replace=False)]
        b = other[rng.choice(len(other), size, replace=False)]
        found.append(squared_mmd(a, b))
    return Kid(float(np.mean(found)), float(np.std(found)), size)


def squared_mmd(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of [N, D] and [M, D] under the
    polynomial kernel (x . y / D + 1)^3."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3

    def among(a: np.ndarray) -> float:
        inner = kernel(a, a)
        return float((inner.sum() - np.trace(inner)) / (len(a) * (len(a) - 1)))

    return among(one) + among(other) - 2 * float(kernel(one, other).mean())
