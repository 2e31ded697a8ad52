"""From the table of measurements to the figures, as metrics.json has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bs_ray.config import EvalJob
from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.comparison import comparison_figures
from bs_ray.evaluate.grid import Grid, noise_of, spread_of
from bs_ray.evaluate.intervals import interval
from bs_ray.evaluate.judging import Judging, Measure
from bs_ray.evaluate.methods import methods_figures
from bs_ray.evaluate.metrics import drift_by_face, shape_by_face, smoothness_by_face
from bs_ray.evaluate.splits import Split
from bs_ray.sliders.slider import Slider


@dataclass(frozen=True)
class Wanted:
    """What is measured on whom, by whom."""

    arms: Sequence[Arm]
    judging: Mapping[str, Judging]
    """By split."""
    own: Mapping[tuple[str, Arm], Measure]
    """What an arm should move, by split."""
    titles: Mapping[str, str]
    """By split."""
    sliders: Mapping[Arm, Slider]

    def trained_with(self, split: str, arm: Arm) -> list[str]:
        """Judges that a slider was trained to please."""
        training = self.sliders[arm].card.training
        return self.judging[split].panel.trained_with(training)

    @classmethod
    def of(
        cls,
        arms: Sequence[Arm],
        sliders: Mapping[Arm, Slider],
        judging: Mapping[str, Judging],
        splits: Mapping[str, Split],
    ) -> Wanted:
        """Raises JudgeUnavailable where no judge reads what an arm should move."""
        named = {arm.group: sliders[arm].card.name for arm in reversed(arms)}
        pairs = [(split, arm) for split in splits for arm in arms]
        return cls(
            arms,
            judging,
            {(s, a): judging[s].measure(a, named[a.group]) for s, a in pairs},
            {name: split.title for name, split in splits.items()},
            sliders,
        )


def figures_of(job: EvalJob, wanted: Wanted, table: pd.DataFrame) -> dict[str, Any]:
    """All figures that follow from the table: plain JSON, without nan."""
    arms = wanted.arms
    grids = {(split, arm): Grid.of(table, split, arm) for split in job.splits for arm in arms}
    figures: dict[str, Any] = {
        "name": job.name,
        "splits": {
            name: _split_figures(wanted, name, grids[name, arms[0]].photos) for name in job.splits
        },
        "sliders": {},
        "interference": {},
    }
    for (split, arm), grid in grids.items():
        if not len(grid.items):
            raise ValueError(
                f"splits.{split}: got no photo that can be measured with {arm.name}: "
                f"{grid.left_out}; expected some. Look at the photos, or at editor.region"
            )
        found = slider_figures(grid, wanted.judging[split], wanted.own[split, arm])
        found["slider"] = wanted.sliders[arm].reference
        found["trained_with"] = wanted.trained_with(split, arm)
        figures["sliders"].setdefault(arm.label, {})[split] = found
    for name, splits in figures["sliders"].items():
        figures["sliders"][name] = _in_short(next(iter(splits.values()))) | splits
    first = next(iter(job.splits))
    measures = wanted.judging[first].measures
    by_words = any(wanted.own[first, arm].of for arm in arms)
    shown = [one for one in measures if by_words or not one.of]
    for arm in arms:
        figures["interference"][arm.label] = moves(grids[first, arm], shown)
    if job.methods:
        figures |= methods_figures(job, wanted, grids)
    elif job.compare:
        figures["comparisons"] = comparison_figures(job, wanted, grids)
    return without_nan(figures)


def by_split(figures: Mapping[str, Any], slider: str) -> dict[str, dict[str, Any]]:
    """A slider's figures by split, without those that stand beside them."""
    found = figures["sliders"][slider]
    return {split: found[split] for split in figures["splits"]}


def _in_short(found: Mapping[str, Any]) -> dict[str, Any]:
    """A slider on the first split in the fewest figures, beside those of every split."""
    return {
        "judged_change": found["effect"],
        "monotone_share": found["monotone_share"],
        "identity_kept_share": found.get("same_person_share"),
        "zero_exact": found["zero_exact"],
        "n": found["faces"],
    }


def _split_figures(wanted: Wanted, name: str, photos: pd.DataFrame) -> dict[str, Any]:
    """What was measured on, by whom, and how; `spread` is what a move is divided by in a drift."""
    judging = wanted.judging[name]
    return {
        "title": wanted.titles[name],
        **judging.panel.described(),
        "readings": [
            {"column": m.column, "name": m.name, "unit": m.unit, "spread": spread_of(photos, m)}
            for m in judging.measures
        ],
    }


def slider_figures(grid: Grid, judging: Judging, own: Measure) -> dict[str, Any]:
    """One arm on one split. Means and shares over faces, with their intervals of 95%.

    Ends are strengths -1 and +1; `effect` is in the measure's own unit.
    """
    low, high = grid.at(-1), grid.at(1)
    others = judging.others(own)
    scales = np.array([spread_of(grid.photos, other) for other in others])
    curve, beside = grid.column(own.column), grid.columns(others)
    by_face = {
        "effect": curve[:, high] - curve[:, low],
        "drift_other": drift_by_face((beside[:, high] - beside[:, low]) / scales),
        **shape_by_face(grid.strengths, curve, noise_of(grid.photos, own)),
        **_harms_by_face(grid, judging, [low, high]),
    }
    if judging.panel.clip:
        positive = f"{judging.panel.clip[0].card.name}/{grid.rows['group'].iloc[0]}+"
        score = grid.column(positive)
        by_face["clip_change"] = score[:, high] - score[:, low]
    by_face = {name: values[np.isfinite(values)] for name, values in by_face.items()}
    move = np.abs(beside[:, high] - beside[:, low]).mean(0)
    return {
        "measure": own.column,
        "reads": own.name,
        "unit": own.unit,
        "faces": len(grid.items),
        "left_out": grid.left_out,
        "zero_exact": bool(grid.rows["zero_exact"].all()),
        **{name: float(values.mean()) if len(values) else None for name, values in by_face.items()},
        "drifts": {o.column: float(m) for o, m in zip(others, move, strict=True)},
        "intervals": {name: interval(values) for name, values in by_face.items()},
    }


def _harms_by_face(grid: Grid, judging: Judging, ends: list[int]) -> dict[str, np.ndarray]:
    panel = judging.panel
    found: dict[str, np.ndarray] = {}
    if panel.identity:
        judge = panel.identity[0]
        far = grid.column(judge.card.name)[:, ends]
        found["identity_distance"] = far.mean(1)
        if math.isfinite(judge.same_below):
            found["same_person_share"] = np.all(far < judge.same_below, axis=1)
        else:  # the tiny world's own, whose distance is 1 less a similarity
            found["identity"] = 1 - far.mean(1)
    if panel.perceptual:
        name = panel.perceptual[0].card.name
        found["perceptual"] = grid.column(name)[:, ends].mean(1)
    if judging.looks:
        name = judging.looks.card.name
        following, after = grid.column(f"{name}/next"), grid.column(f"{name}/after")
        found |= smoothness_by_face(grid.strengths, following, after)
    for further in (*panel.identity[1:], *panel.perceptual[1:], *panel.features):
        found[further.card.name] = grid.column(further.card.name)[:, ends].mean(1)
    return found


def moves(grid: Grid, shown: list[Measure]) -> dict[str, float]:
    """By reading, how far it moves from strength -1 to +1, mean and with its sign. For all but the
    slider's own, 0 would be best."""
    move = grid.columns(shown)
    return {
        m.name: float(v)
        for m, v in zip(shown, (move[:, grid.at(1)] - move[:, grid.at(-1)]).mean(0), strict=True)
    }


def without_nan(value: Any) -> Any:
    """The same, with None for what is not a finite number, which JSON has no way to write."""
    if isinstance(value, dict):
        return {name: without_nan(it) for name, it in value.items()}
    if isinstance(value, list):
        return [without_nan(it) for it in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
