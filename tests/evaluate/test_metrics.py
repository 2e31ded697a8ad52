"""Figures by hand."""

import numpy as np
import pytest

from bs_ray.evaluate.intervals import interval, percentiles, resampled
from bs_ray.evaluate.metrics import (
    NOISE,
    drift_by_face,
    is_monotone,
    psnr_figures,
    row_correlation,
    shape_by_face,
    smoothness_by_face,
)

STRENGTHS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def test_a_curve_that_bends_back_is_not_monotone() -> None:
    rising, bent = 0.5 + 0.1 * STRENGTHS, np.array([0.5, 0.4, 0.5, 0.6, 0.55])
    found = shape_by_face(STRENGTHS, np.stack([rising, bent]), NOISE)
    assert found["monotone_share"].tolist() == [True, False]
    assert found["strictly_monotone_share"].tolist() == [True, False]
    assert found["linearity"][0] == pytest.approx(1)
    assert found["linearity"][1] < 0.9


def test_a_fall_within_the_readers_noise_is_none() -> None:
    still, falling = [0.06, 0.05, 0.08, 0.4, 0.8], [0.9, 0.895, 0.89, 0.885, 0.88]
    assert is_monotone(np.array([still, falling])).tolist() == [True, False]
    years = np.array([[40, 39.5, 41, 44, 48.0]])
    assert is_monotone(years, 1.0).all() and not is_monotone(years, 0.1).any()


def test_a_flat_curve_is_not_monotone_and_has_no_correlation() -> None:
    found = shape_by_face(STRENGTHS, np.full((1, 5), 0.5), NOISE)
    assert not found["monotone_share"][0] and found["linearity"][0] == 0


def test_drift_is_the_mean_of_the_others() -> None:
    move = np.array([[0.1, -0.3], [0.0, 0.0]])
    assert drift_by_face(move).tolist() == pytest.approx([0.2, 0.0])
    assert np.isnan(drift_by_face(np.zeros((2, 0)))).all()


def distances(places: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """As a judge says of pictures that lie on a line: to the next, and to the one behind that."""
    line = np.array(places)
    pad = [np.nan]
    one, two = np.abs(np.diff(line)), np.abs(line[2:] - line[:-2])
    return np.concatenate([one, pad])[None], np.concatenate([two, pad, pad])[None]


def test_smoothness_after_kontinuous_kontext() -> None:
    even = smoothness_by_face(STRENGTHS, *distances([0, 1, 2, 3, 4]))
    assert even["step_spread"][0] == pytest.approx(0)
    assert even["triangle_deficit"][0] == pytest.approx(0)
    # Nothing happens but at one step: shares 0, 0, 1, 0, whose deviation is sqrt(3) / 4.
    jump = smoothness_by_face(STRENGTHS, *distances([0, 1e-9, 2e-9, 1, 1 + 1e-9]))
    assert jump["step_spread"][0] == pytest.approx(3**0.5 / 4, abs=1e-6)
    # Out and back: each triple's detour is 1 + 1 against a direct way of 0.1.
    back = smoothness_by_face(STRENGTHS, *distances([0, 1, 0.1, 1.1, 0.2]))
    assert back["triangle_deficit"][0] > 5


def test_smoothness_counts_steps_by_their_strength() -> None:
    strengths = np.array([-1.0, -0.5, 0.0, 1.0])
    found = smoothness_by_face(strengths, *distances([-1, -0.5, 0, 1]))
    assert found["step_spread"][0] == pytest.approx(0)
    still = smoothness_by_face(strengths, *distances([0, 0, 0, 0]))
    assert np.isnan(still["step_spread"][0])


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
    weights = resampled(64, draws=500)
    drawn = [percentiles(weights @ faces) for faces in rng.normal(0.4, 0.2, (500, 64))]
    for found, truth in ((means, 0.4), (shares, 0.9), (drawn, 0.4)):
        held = np.mean([low <= truth <= high for low, high in found])
        assert held == pytest.approx(0.95, abs=0.03)


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 50))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    assert row_correlation(a, b) == pytest.approx(expected)


def test_psnr_has_peak_two() -> None:
    found = psnr_figures(np.full(10, 0.2**2))
    assert found["vae_psnr_db"] == pytest.approx(20)
    assert found["vae_psnr_interval"] == pytest.approx([20, 20])
    low, high = psnr_figures(np.array([0.03, 0.04, 0.05]))["vae_psnr_interval"]
    assert low < 20 < high
