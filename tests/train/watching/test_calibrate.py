"""What a calibration says about hand-made curves, and about a slider of the tiny plumbing."""

import numpy as np
import pytest

from bs_ray.sliders.measured import Measured, calibration, monotone

STRENGTHS = [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]


def measured(effect, drift=None, **more) -> Measured:
    noise = np.array([[-0.01], [0.01]]) * np.abs(np.array(STRENGTHS))
    rows = np.asarray(effect, float) + noise
    flat = np.abs(STRENGTHS) / 10 if drift is None else np.asarray(drift, float)
    return Measured("points", STRENGTHS, rows, np.stack([flat, flat]), **more)


def test_a_linear_slider_is_usable_throughout() -> None:
    found = calibration("smile", measured(STRENGTHS), 2.0)
    assert (found.unit, found.low, found.high) == (1.0, -4.0, 4.0)
    assert found.effect == pytest.approx(STRENGTHS) and found.identity == []
    assert found.strengths == STRENGTHS and found.drift[0] == 0.4


def test_a_saturating_slider_ends_where_it_stops_growing() -> None:
    found = calibration("smile", measured([-5, -5, -4.9, -3, 0, 3, 4.9, 5, 5]), 2.0)
    assert (found.low, found.high) == (-2.0, 2.0)
    assert found.unit == pytest.approx(4.9 / 2 / 3)  # half the effect comes before strength 1


def test_a_slider_that_turns_back_ends_at_its_turn() -> None:
    found = calibration("smile", measured([-4, -3, -2, -1, 0, 1, 2, 1.5, 0.5]), 2.0)
    assert (found.low, found.high) == (-4.0, 2.0)
    assert found.effect[-3:] == pytest.approx([2, 2, 2])


def test_the_range_ends_where_the_picture_or_the_person_breaks() -> None:
    drift = [0.9, 0.5, 0.2, 0.1, 0, 0.1, 0.2, 0.3, 0.4]
    found = calibration("smile", measured(STRENGTHS, drift, max_drift=0.45), 2.0)
    assert (found.low, found.high) == (-2.0, 4.0)
    person = np.array([[0.9, 0.9, 0.9, 1, 1, 0.9, 0.4, 0.9, 0.9]])
    found = calibration("smile", measured(STRENGTHS, identity=person, min_identity=0.5), 2.0)
    assert (found.low, found.high) == (-4.0, 1.0) and found.identity[6] == 0.4


@pytest.mark.parametrize("effect", [np.zeros(9), -np.array(STRENGTHS)], ids=["dead", "backwards"])
def test_a_slider_without_effect_warns_and_has_no_range(effect) -> None:
    with pytest.warns(UserWarning, match=r"slider smile: got no effect .*; expected .* Train long"):
        found = calibration("smile", measured(effect), 2.0)
    assert (found.unit, found.low, found.high) == (0, 0, 0)


def test_noise_is_no_effect() -> None:
    rows = np.outer([1.0, -0.9, 0.8, -0.7], STRENGTHS)
    seen = Measured("points", STRENGTHS, rows, np.abs(rows))
    with pytest.warns(UserWarning, match="no effect"):
        assert calibration("smile", seen, 2.0).high == 0


def test_monotone_never_falls_back_outward() -> None:
    x = np.array([-2.0, -1, 0, 1, 2])
    assert monotone(x, np.array([-1, -2, 0.0, -0.5, 3])).tolist() == [-2, -2, 0, 0, 3]
