"""The figures of a job's `compare`: every arm at the same effect, and the first one's rivals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bs_ray.config import EvalJob
from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.grid import Grid, noise_of
from bs_ray.evaluate.intervals import interval, percentiles
from bs_ray.evaluate.matched import (
    Matched,
    Response,
    compared,
    differences,
    response_of,
    value_at,
    verdict,
)

if TYPE_CHECKING:
    from bs_ray.evaluate.figures import Wanted


def comparison_figures(
    job: EvalJob, wanted: Wanted, grids: Mapping[tuple[str, Arm], Grid]
) -> dict[str, Any]:
    """By split: the effect that all were brought to, every arm there, the differences from the
    first arm, and a verdict for each of the others."""
    found = {}
    for split in job.splits:
        own = wanted.own[split, wanted.arms[0]]
        responses, items = {}, {}
        for arm in wanted.arms:
            grid = grids[split, arm]
            noise = noise_of(grid.photos, own)
            responses[arm.name] = response_of(grid, wanted.judging[split], own, noise)
            items[arm.name] = grid.items
        goal, arms, faces = compared(responses, items, job.at_effect)
        first, *rivals = arms
        between = {name: differences(arms[name], arms[first]) for name in rivals}
        at = f"the same effect of {goal:#.3g} {own.unit}"
        found[split] = {
            "measure": own.column,
            "unit": own.unit,
            "effect": goal,
            "faces": faces,
            "first": first,
            "curves": {name: response.means() for name, response in responses.items()},
            "arms": {name: _arm_figures(arms[name], responses[name]) for name in arms},
            "differences": between,
            "verdicts": {
                name: _verdict(name, first, split, at, goal, arms, between[name]) for name in rivals
            },
        }
    return found


def _arm_figures(matched: Matched, response: Response) -> dict[str, Any]:
    monotone = response.monotone
    return {
        "strength": float(value_at(matched.place, response.sizes)),
        "reached": matched.reached,
        "effect": matched.effect,
        **matched.figures,
        "monotone_share": float(monotone.mean()),
        "intervals": {
            **{name: percentiles(drawn) for name, drawn in matched.drawn.items()},
            "monotone_share": interval(monotone),
        },
    }


def _verdict(
    name: str,
    first: str,
    split: str,
    at: str,
    goal: float,
    arms: Mapping[str, Matched],
    between: Mapping[str, dict],
) -> dict[str, str]:
    """The verdict, unless one of the two does not do what it should."""
    for one in (first, name):
        if goal <= 0 or not arms[one].reached:
            sentence = (
                f"{name} and {first} cannot be compared ({split}): {one} does not reach {at}; the "
                f"most that it does is {arms[one].effect:.3g}."
            )
            return {"answer": "not comparable", "sentence": sentence}
    return verdict(name, first, split, at, between)
