"""Arms at equal effect: interpolate each to it, and resample the faces, all arms' together.

A slider that moves little also harms little, so arms are compared where the attribute moves equally
far. The matching is part of what is resampled, so the intervals contain its error.

Legend: F faces, S sizes (strengths of both signs, ascending from 0), B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bs_ray.evaluate.grid import Grid, spread_of
from bs_ray.evaluate.intervals import percentiles, resampled
from bs_ray.evaluate.judging import Judging, Measure
from bs_ray.evaluate.metrics import drift_by_face, is_monotone

Array = np.ndarray

SHARE_OF_WEAKEST = 0.8
HARMS = {
    "drift": "drift of the other attributes",
    "identity_distance": "identity distance",
    "perceptual": "perceptual distance",
}
"""What an edit should keep small, in the order of a verdict's sentence."""


@dataclass(frozen=True)
class Response:
    """What an arm does on a split, by face and size."""

    sizes: Array
    """float64 [S]."""
    effect: Array
    """float64 [F, S]: the measure at plus less that at minus."""
    harms: dict[str, Array]
    """By name, float64 [F, S], mean of both signs, against the photo."""
    monotone: Array
    """bool [F]."""

    def means(self) -> dict[str, Any]:
        """Over the faces, as JSON: `sizes`, `effect`, and by name `harms`."""
        return {
            "sizes": self.sizes.tolist(),
            "effect": self.effect.mean(0).tolist(),
            "harms": {name: values.mean(0).tolist() for name, values in self.harms.items()},
        }

    def faces(self, chosen: Array) -> Response:
        """Some of the faces."""
        harms = {name: values[chosen] for name, values in self.harms.items()}
        return Response(self.sizes, self.effect[chosen], harms, self.monotone[chosen])


def response_of(grid: Grid, judging: Judging, own: Measure, noise: float) -> Response:
    """The response of an arm whose strengths come with both signs."""
    sizes = grid.strengths[grid.strengths >= 0]
    plus = [grid.at(size) for size in sizes]
    minus = [grid.at(-size) for size in sizes]
    others = judging.others(own)
    scales = np.array([spread_of(grid.photos, other) for other in others])
    away = (grid.columns(others) - grid.of_photos(others)[:, None]) / scales
    far = np.stack([drift_by_face(away[:, k]) for k in range(len(grid.strengths))], axis=1)
    harms = {"drift": far}
    for name, judges in (
        ("identity_distance", judging.panel.identity),
        ("perceptual", judging.panel.perceptual),
    ):
        if judges:
            harms[name] = grid.column(judges[0].card.name)
    curve = grid.column(own.column)
    return Response(
        sizes,
        curve[:, plus] - curve[:, minus],
        {name: (values[:, plus] + values[:, minus]) / 2 for name, values in harms.items()},
        is_monotone(curve, noise),
    )


def place_of(goal: float, effects: Array) -> float:
    """Where, between the sizes, the mean effect [S] first reaches the goal: 1.5 is half way from
    the second to the third. Where it never does, the place of the largest effect."""
    reached = np.flatnonzero(effects >= goal)
    if not len(reached):
        return float(effects.argmax())
    at = int(reached[0])
    if at == 0:
        return 0.0
    return at - 1 + float((goal - effects[at - 1]) / (effects[at] - effects[at - 1]))


def value_at(place: float | Array, values: Array) -> Array:
    """Linear interpolation of values [..., S] at a place."""
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, values.shape[-1] - 1)
    share = place - low
    if np.ndim(place) == 0:
        return values[..., low] * (1 - share) + values[..., high] * share
    rows = np.arange(len(values))
    return values[rows, low] * (1 - share) + values[rows, high] * share


def common_effect(responses: Sequence[Response]) -> float:
    """What the weakest arm reaches at most, less a margin, so that resampled faces reach it too."""
    return SHARE_OF_WEAKEST * min(float(one.effect.mean(0).max()) for one in responses)


@dataclass(frozen=True)
class Matched:
    """One arm at the common effect."""

    place: float
    reached: bool
    effect: float
    figures: dict[str, float]
    drawn: dict[str, Array]
    """The same figures in every draw: [B]."""


def match(response: Response, goal: float, weights: Array) -> Matched:
    """An arm at the goal. weights: of `resampled`, the same for every arm."""
    means = response.effect.mean(0)
    place = place_of(goal, means)
    places = np.array([place_of(goal, effects) for effects in weights @ response.effect])
    return Matched(
        place,
        bool(means.max() >= goal),
        float(value_at(place, means)),
        {name: float(value_at(place, far.mean(0))) for name, far in response.harms.items()},
        {name: value_at(places, weights @ far) for name, far in response.harms.items()},
    )


def compared(
    responses: Mapping[str, Response], items: Mapping[str, Array], goal: float | None
) -> tuple[float, dict[str, Matched], int]:
    """(the common effect, every arm there, how many faces all of them have)."""
    shared = sorted(set.intersection(*(set(own.tolist()) for own in items.values())))
    paired = {
        name: one.faces(np.flatnonzero(np.isin(items[name], shared)))
        for name, one in responses.items()
    }
    wanted = common_effect(list(paired.values())) if goal is None else goal
    weights = resampled(len(shared))
    return wanted, {n: match(one, wanted, weights) for n, one in paired.items()}, len(shared)


def differences(arm: Matched, first: Matched) -> dict[str, dict]:
    """By harm: how much more of it than the first arm, with its interval over faces."""
    return {
        name: {
            "difference": arm.figures[name] - first.figures[name],
            "interval": percentiles(arm.drawn[name] - first.drawn[name]),
        }
        for name in arm.figures
        if np.isfinite(arm.figures[name]) and np.isfinite(first.figures[name])
    }


def verdict(name: str, first: str, split: str, at: str, found: Mapping[str, dict]) -> dict:
    """Whether an arm is better than the first one: `answer`, and a `sentence` with its intervals.

    Better: some harm is surely less (its interval does not reach 0) and none is surely more.
    """
    signs = {harm: _sign(its["interval"]) for harm, its in found.items()}
    less, more = -1 in signs.values(), 1 in signs.values()
    answer = "mixed" if less and more else "better" if less else "worse" if more else "equal"
    opening = {
        "better": f"{name} is better than {first}",
        "worse": f"{name} is worse than {first}",
        "mixed": f"{name} is better than {first} in some ways and worse in others",
        "equal": f"No difference between {name} and {first} is sure",
    }[answer]
    parts = [_said(HARMS[harm], signs[harm], its) for harm, its in found.items()]
    listed = "; ".join(parts) or "no judge measures any harm"
    return {"answer": answer, "sentence": f"{opening} ({split}): at {at}, {listed}."}


def _sign(interval: Sequence[float] | None) -> int:
    if interval is None:
        return 0
    return 1 if interval[0] > 0 else -1 if interval[1] < 0 else 0


def _said(harm: str, sign: int, its: dict) -> str:
    by, interval = its["difference"], its["interval"]
    if interval is None:
        return f"{harm} {by:+.3g}"
    between = f"95% interval {interval[0]:+.3g} to {interval[1]:+.3g}"
    kind = {1: "more", -1: "less", 0: "not surely different"}[sign]
    return f"{harm} {by:+.3g}, {kind} ({between})"
