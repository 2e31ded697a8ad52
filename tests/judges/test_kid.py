"""KID by hand, and what it says of sets that are alike and of sets that are not."""

import numpy as np
import pytest

from bs_ray.judges.kid import kid, squared_mmd


def test_by_hand() -> None:
    one, other = np.array([[1.0, 0], [0, 2]]), np.array([[1.0, 1], [2, 0], [0, 0]])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 2 + 1) ** 3

    among = np.mean([k(one[i], one[j]) for i in range(2) for j in range(2) if i != j])
    among += np.mean([k(other[i], other[j]) for i in range(3) for j in range(3) if i != j])
    across = np.mean([k(a, b) for a in one for b in other])
    assert squared_mmd(one, other) == pytest.approx(among - 2 * across, rel=1e-12)


def test_alike_sets_are_at_zero_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    one, same = rng.normal(size=(400, 8)), rng.normal(size=(300, 8))
    alike = kid(one, same, subsets=50, size=100)
    apart = kid(one, same + 0.5, subsets=50, size=100)
    assert abs(alike.mean) < 2 * alike.sd / 3 and apart.mean > 5 * apart.sd > 0
    assert alike.size == 100 and kid(one, same).size == 300
    assert kid(one, same, subsets=5, size=50) == kid(one, same, subsets=5, size=50)


def test_one_picture_is_no_set() -> None:
    with pytest.raises(ValueError, match=r"got features \[1, 3\] and \[5, 3\]; expected two or"):
        kid(np.zeros((1, 3)), np.zeros((5, 3)))
