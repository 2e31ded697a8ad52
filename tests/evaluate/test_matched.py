"""Arms at equal effect, whose truth is known."""

import numpy as np
import pytest

from bs_ray.evaluate.intervals import resampled
from bs_ray.evaluate.matched import (
    Response,
    common_effect,
    compared,
    differences,
    match,
    place_of,
    value_at,
    verdict,
)

SIZES = np.array([0.0, 0.5, 1.0, 2.0])


def response(gain: float, harm: float, faces: int = 64, seed: int = 0) -> Response:
    """An arm that moves by `gain` and harms by `harm` a unit of strength; each face by its own
    factor, which is the same for every arm."""
    own = np.random.default_rng(1).uniform(0.5, 1.5, (faces, 1))
    noise = np.random.default_rng(seed + 2).normal(0, 0.02, (faces, 1))
    return Response(
        SIZES,
        gain * SIZES * own,
        {"drift": (harm * SIZES + noise) * own, "perceptual": 0.1 * gain * SIZES * own},
        np.ones(faces, bool),
    )


def test_the_least_strength_that_reaches_the_goal() -> None:
    effects = np.array([0.0, 0.2, 0.4, 0.8])
    assert value_at(place_of(0.3, effects), SIZES) == pytest.approx(0.75)
    assert value_at(place_of(0.6, effects), SIZES) == pytest.approx(1.5)
    assert value_at(place_of(0.9, effects), SIZES) == 2.0  # never reached
    assert place_of(0.1, np.array([0.2, 0.3])) == 0
    rising_and_falling = np.array([0.0, 0.5, 0.3, 0.6])
    assert value_at(place_of(0.4, rising_and_falling), SIZES) == pytest.approx(0.4)


def test_values_between_sizes_row_by_row() -> None:
    values = np.array([[0.0, 1.0, 2.0], [0.0, 10.0, 20.0]])
    assert value_at(np.array([0.5, 2.0]), values).tolist() == [0.5, 20.0]
    assert value_at(1.5, values).tolist() == [1.5, 15.0]


def test_a_weaker_arm_is_brought_to_the_same_effect() -> None:
    weak, strong = response(0.5, 0.1), response(1.0, 0.2)
    goal = common_effect([weak, strong])
    assert goal == pytest.approx(0.8 * weak.effect.mean(0)[-1])
    weights = resampled(64, 200)
    one, other = (match(arm, goal, weights) for arm in (weak, strong))
    assert one.effect == pytest.approx(other.effect) == pytest.approx(goal)
    assert one.figures["drift"] == pytest.approx(other.figures["drift"], abs=0.01)
    assert one.figures["perceptual"] == pytest.approx(other.figures["perceptual"], rel=1e-6)


def test_a_better_arm_is_found_and_pairing_makes_it_sure() -> None:
    old, new = response(1.0, 0.2), response(0.8, 0.12, seed=1)
    items = {"old": np.arange(64), "new": np.arange(64)}
    _, arms, faces = compared({"old": old, "new": new}, items, 0.5)
    found = differences(arms["new"], arms["old"])
    low, high = found["drift"]["interval"]
    assert faces == 64 and low < found["drift"]["difference"] < high < 0
    assert abs(found["perceptual"]["difference"]) < 1e-9
    said = verdict("new", "old", "photos", "the same effect of 0.5", found)
    assert said["answer"] == "better" and "new is better than old (photos)" in said["sentence"]
    assert (
        verdict("old", "new", "p", "x", differences(arms["old"], arms["new"]))["answer"] == "worse"
    )


def test_noise_is_no_verdict() -> None:
    items = {"a": np.arange(32), "b": np.arange(32)}
    arms = {"a": response(1.0, 0.2, 32, seed=3), "b": response(1.0, 0.2, 32, seed=4)}
    _, found, _ = compared(arms, items, None)
    assert verdict("b", "a", "p", "x", differences(found["b"], found["a"]))["answer"] == "equal"


def test_faces_that_one_arm_lacks_count_for_none() -> None:
    items = {"a": np.arange(64), "b": np.arange(10, 74)}
    _, _, faces = compared({"a": response(1, 0.1), "b": response(1, 0.1)}, items, None)
    assert faces == 54
