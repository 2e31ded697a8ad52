"""The figures of a table, from what evaluate measured of its sliders.

Legend: F faces, S sizes (strengths of both signs, ascending from 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from bs_ray.config import EvalJob, TableJob
from bs_ray.evaluate.arms import Arm, arms_of
from bs_ray.evaluate.figures import without_nan
from bs_ray.evaluate.grid import Grid, noise_of
from bs_ray.evaluate.intervals import interval, percentiles
from bs_ray.evaluate.judging import Judging, Measure, judging_of, small
from bs_ray.evaluate.matched import Matched, Response, compared, response_of, value_at
from bs_ray.evaluate.splits import open_splits
from bs_ray.storage import Store

_NAMES = {"perceptual": "lpips", "identity_distance": "identity_distance", "drift": "drift"}


@dataclass(frozen=True)
class Measured:
    """One slider's evaluation: by every method, on all of its splits."""

    job: EvalJob
    figures: Mapping[str, Any]
    table: pd.DataFrame
    arms: list[Arm]
    judging: Mapping[str, Judging]

    @classmethod
    def of(cls, job: EvalJob, figures: Mapping[str, Any]) -> Measured:
        """What `evaluate` left of the job."""
        table = pd.read_parquet(BytesIO(Store(job.output).read("metrics.parquet")))
        arms = arms_of(job)
        return cls(job, figures, table, arms, judging_of(job, arms, open_splits(job)))


def row_figures(job: TableJob, label: str, measured: Measured) -> dict[str, Any]:
    """One row: by method its figures at equal effect, with those of the paper's protocol under
    `unmatched`; what the row is; the verdicts of evaluate against the first method."""
    row = job.rows[label]
    judging = measured.judging[row.split]
    its = measured.figures["comparisons"][row.split]
    own = next(one for one in judging.measures if one.column == its["measure"])
    grids = {arm.name: Grid.of(measured.table, row.split, arm) for arm in measured.arms}
    responses = {name: _response(grid, judging, own) for name, grid in grids.items()}
    items = {name: grid.items for name, grid in grids.items()}
    goal, matched, count = compared(responses, items, measured.job.at_effect)
    methods = {
        name: _at_equal_effect(goal, matched[name], responses[name])
        | {"n": count, "unmatched": _unmatched(grids[name], judging, own, job.strength)}
        for name in grids
    }
    panel = judging.panel
    found = {
        "slider": row.slider,
        "split": row.split,
        "in_paper": row.in_paper,
        "paper": {name: its.model_dump() for name, its in row.paper.items()},
        "reads": its["measure"],
        "unit": its["unit"],
        "at_effect": goal,
        "judges": {
            "lpips": panel.perceptual[0].card.name if panel.perceptual else None,
            "identity": panel.identity[0].card.name if panel.identity else None,
            "clip": panel.clip[0].card.name if panel.clip else None,
        },
        "absent": dict(panel.absent),
        "verdicts": its["verdicts"],
        **methods,
    }
    return without_nan(found)


def _response(grid: Grid, judging: Judging, own: Measure) -> Response:
    """As evaluate's, with the perceptual distance at 64 px and the CLIP change from minus to
    plus."""
    response = response_of(grid, judging, own, noise_of(grid.photos, own))
    plus = [grid.at(size) for size in response.sizes]
    minus = [grid.at(-size) for size in response.sizes]
    more = {}
    if judging.panel.perceptual:
        far = grid.column(small(judging.panel.perceptual[0]))
        more["lpips64"] = (far[:, plus] + far[:, minus]) / 2
    if score := _clip(judging, grid):
        scores = grid.column(score)
        more["clip_change"] = scores[:, plus] - scores[:, minus]
    return replace(response, harms=response.harms | more)


def _clip(judging: Judging, grid: Grid) -> str:
    """The column of CLIP's score of the positive prompt; "" where there is no CLIP."""
    if not judging.panel.clip:
        return ""
    return f"{judging.panel.clip[0].card.name}/{grid.rows['group'].iloc[0]}+"


def _at_equal_effect(goal: float, matched: Matched, response: Response) -> dict[str, Any]:
    figures = {_NAMES.get(name, name): value for name, value in matched.figures.items()}
    between = {_NAMES.get(name, name): percentiles(d) for name, d in matched.drawn.items()}
    if "identity_distance" in figures:
        figures["identity"] = 1 - figures["identity_distance"]
        between["identity"] = percentiles(1 - matched.drawn["identity_distance"])
    return {
        "effect": matched.effect,
        "reached": matched.reached and goal > 0,
        "strength": float(value_at(matched.place, response.sizes)),
        **dict.fromkeys(("lpips64", "lpips", "identity", "clip_change")),
        **figures,
        "monotone_share": float(response.monotone.mean()),
        "intervals": {**between, "monotone_share": interval(response.monotone)},
    }


def _unmatched(grid: Grid, judging: Judging, own: Measure, strength: float) -> dict[str, Any]:
    """The paper's protocol: edited at one strength, against the picture at strength 0."""
    at, zero = grid.at(strength), grid.at(0)
    panel = judging.panel
    by_face: dict[str, np.ndarray] = {}
    curve = grid.column(own.column)
    by_face["effect"] = curve[:, at] - curve[:, zero]
    if score := _clip(judging, grid):
        scores = grid.column(score)
        by_face["clip"] = scores[:, at]
        by_face["clip_change"] = scores[:, at] - scores[:, zero]
    if panel.perceptual:
        by_face["lpips64"] = grid.column(small(panel.perceptual[0]))[:, at]
        by_face["lpips"] = grid.column(panel.perceptual[0].card.name)[:, at]
    if panel.identity:
        by_face["identity"] = 1 - grid.column(panel.identity[0].card.name)[:, at]
    return {
        "strength": strength,
        **dict.fromkeys(("clip", "clip_change", "lpips64", "lpips", "identity")),
        **{name: float(values.mean()) for name, values in by_face.items()},
        "sd": {name: float(values.std(ddof=1)) for name, values in by_face.items()},
    }
