"""Figures by hand."""

import numpy as np
import pytest

from bs_ray.evaluate.intervals import interval
from bs_ray.evaluate.metrics import psnr_db, row_correlation, slider_figures

STRENGTHS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def figures(curve: np.ndarray, other: np.ndarray):
    readings = np.stack([curve, other], axis=-1)
    flat = np.ones_like(curve)
    return slider_figures(
        STRENGTHS, readings, 0, flat, 0 * flat, np.tile(STRENGTHS, (len(curve), 1)), True
    )


def test_effect_drift_and_monotonicity() -> None:
    rising = 0.5 + 0.1 * STRENGTHS
    bent = np.array([0.5, 0.4, 0.5, 0.6, 0.55])
    other = np.array([[0.0, 0.2, 0.2, 0.1, 0.0], [0.3, 0.3, 0.3, 0.3, 0.3]])
    found = figures(np.stack([rising, bent]), other)
    assert found.effect == pytest.approx(0.2)
    assert found.drift_other == pytest.approx(0.05)
    assert found.monotone_share == found.strictly_monotone_share == 0.5
    assert found.clip_change == pytest.approx(2.0)
    assert found.zero_exact and found.faces == 2


def test_a_fall_within_the_readers_noise_is_none() -> None:
    still = np.array([0.06, 0.05, 0.08, 0.4, 0.8])
    falling = np.array([0.9, 0.895, 0.89, 0.885, 0.88])
    found = figures(np.stack([still, falling]), np.zeros((2, 5)))
    assert found.monotone_share == 0.5
    assert found.strictly_monotone_share == 0


def test_a_flat_curve_is_not_monotone_and_has_no_correlation() -> None:
    found = figures(np.full((1, 5), 0.5), np.zeros((1, 5)))
    assert (found.effect, found.monotone_share, found.linearity) == (0, 0, 0)


def test_intervals_of_means_and_of_shares() -> None:
    # Student: mean 2, standard error 1 / sqrt(3), t(0.975, 2 degrees of freedom) = 4.3027.
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx([-0.4841, 4.4841], abs=1e-4)
    # Wilson: for n hits of n the lower end is n / (n + 1.96^2).
    assert interval(np.ones(8, bool)) == pytest.approx([0.6756, 1.0], abs=1e-4)
    assert interval(np.array([1.0])) is None


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    means = [interval(faces) for faces in rng.normal(0.4, 0.2, (2000, 24))]
    shares = [interval(faces) for faces in rng.random((2000, 24)) < 0.9]
    for found, truth in ((means, 0.4), (shares, 0.9)):
        held = np.mean([low <= truth <= high for low, high in found])
        assert held == pytest.approx(0.95, abs=0.03)


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 50))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    assert row_correlation(a, b) == pytest.approx(expected)


def test_psnr_has_peak_two() -> None:
    assert psnr_db(np.full(10, 0.2**2)) == pytest.approx(20)
