"""The figures of a job's `methods`: edit methods side by side, each at the LoRA scale that moves
the attribute equally far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bs_ray.config import EvalJob
from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.grid import Grid, noise_of, spread_of
from bs_ray.evaluate.judging import Judging, Measure
from bs_ray.evaluate.matched import Response, place_of, response_of, value_at

if TYPE_CHECKING:
    from bs_ray.evaluate.figures import Wanted


def methods_figures(
    job: EvalJob, wanted: Wanted, grids: Mapping[tuple[str, Arm], Grid]
) -> dict[str, Any]:
    """`goals`; `matched`, the scale of each method, split and slider; `methods`, a row for each
    method and split: means over faces and sliders, with the `spread` over seeds and the same means
    by slider."""
    matched, rows = [], []
    curves: dict[str, dict[str, dict[str, Any]]] = {}
    for method in job.methods:
        for split in job.splits:
            cells: dict[tuple[int, str], dict[str, float]] = {}
            for arm in (one for one in wanted.arms if one.name == method):
                grid, own = grids[split, arm], wanted.own[split, arm]
                noise = noise_of(grid.photos, own)
                response = response_of(grid, wanted.judging[split], own, noise)
                by_slider = curves.setdefault(split, {}).setdefault(arm.group, {})
                by_slider[method] = response.means()
                goal, means = job.effects[arm.group], response.effect.mean(0)
                place = place_of(goal, means)
                matched.append(
                    {
                        "method": method,
                        "setting": split,
                        "slider": arm.group,
                        "scale": float(value_at(place, response.sizes)),
                        "effect": float(value_at(place, means)),
                        "reached": bool(means.max() >= goal),
                    }
                )
                for seed in np.unique(grid.seeds):
                    part = response.faces(np.flatnonzero(grid.seeds == seed))
                    still = _at_zero(grid, wanted.judging[split], own, grid.seeds == seed)
                    cells[int(seed), arm.group] = _figures(part, place) | still
            frame = pd.DataFrame(cells).T
            if _is_own(wanted.judging[split]):
                frame["perceptual_64"] = frame["perceptual"]  # its older name
            by_seed = frame.groupby(level=0).mean()
            rows.append(
                {
                    "method": method,
                    "setting": split,
                    "faces": max(len(grids[split, a].items) for a in wanted.arms),
                    "seeds": len(by_seed),
                    **by_seed.mean().to_dict(),
                    "spread": by_seed.std(ddof=0).to_dict(),
                    "sliders": frame.groupby(level=1).mean().T.to_dict(),
                }
            )
    return {"goals": job.effects, "matched": matched, "methods": rows, "curves": curves}


def _figures(response: Response, place: float) -> dict[str, float]:
    """At one place, of some faces."""
    found = {"effect": float(value_at(place, response.effect.mean(0)))}
    found |= {name: float(value_at(place, far.mean(0))) for name, far in response.harms.items()}
    if "identity_distance" in found:
        found["identity"] = 1 - found["identity_distance"]
    found["monotone_share"] = float(response.monotone.mean())
    return found


def _is_own(judging: Judging) -> bool:
    perceptual = judging.panel.perceptual
    return bool(perceptual) and perceptual[0].card.name == "own-perceptual"


def _at_zero(grid: Grid, judging: Judging, own: Measure, chosen: np.ndarray) -> dict[str, float]:
    """What a method does to a photo without any slider: of all readings, and of the pixels."""
    readings = [own, *judging.others(own)]
    scales = np.array([spread_of(grid.photos, reading) for reading in readings])
    zero = grid.at(0)
    away = (grid.columns(readings)[:, zero] - grid.of_photos(readings)) / scales
    return {
        "pixels_at_zero": float(grid.column("pixels")[chosen, zero].mean()),
        "drift_at_zero": float(np.abs(away[chosen]).mean()),
    }
