"""Training against the reference procedure, in one process and one run.

Every contestant trains the same slider (same prompts, rank, learning rate, eta) until its attribute
moves by the same amount at strength 1, as the world's judges read edits of held-out faces. Time
counts for training, and for `cached` also for building the cache, but not for judging.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bs_ray.bench.train_bench import GUIDED_ONLY, TrainBench, fresh_hooks
from bs_ray.bench.world import Faces, Moves
from bs_ray.train.loop import one_step

MODES: dict[str, dict[str, Any]] = {
    "concept_sliders": {"algorithm": "concept_sliders", "batch_size": 1, "losses": GUIDED_ONLY},
    "live": {"batch_size": 4, "losses": GUIDED_ONLY},
    "cached": {
        "batch_size": 2,
        "losses": GUIDED_ONLY,
        "teacher": {"mode": "cached", "samples": 64},
    },
}
GOALS = {
    "drawn": {"chubby": 0.35, "smile": 0.25, "age": 0.5},
    "photos": {"smile": 0.2, "age": 8.0},
}
"""World -> attribute -> the move at strength 1 that ends a race, in the reading's unit."""
USUAL = {"drawn": ("chubby", "age"), "photos": ("smile", "age")}
"""World -> the sliders to race with where the caller names none."""
LOOK_EVERY = {"concept_sliders": 10, "live": 5, "cached": 5}


@dataclass
class Race:
    """How one contestant got to the goal."""

    seconds: float
    forward_equivalents: int
    steps: int
    effect: float
    drift: float
    drift_per_effect: float
    """Both as shares of their readings' ranges."""
    reached: bool
    trail: list[dict[str, float]] = field(default_factory=list)


def race(
    bench: TrainBench,
    mode: str,
    attribute: str,
    seed: int,
    faces: Faces,
    report: Callable[[str], None],
) -> Race:
    """Train until the attribute moves by its goal at strength 1, judged every LOOK_EVERY steps."""
    job = bench.job(attribute, seed, **MODES[mode])
    goal = GOALS[bench.world.kind][attribute]
    with fresh_hooks(bench.model):
        bench.counter.rows = 0
        begun = time.perf_counter()
        state = bench.train_state(job, bench.samples(job))
        spent, trail, found = time.perf_counter() - begun, [], Moves(0.0, 0.0)
        rows = bench.counter.rows
        for step in range(job.steps):
            bench.counter.rows, begun = 0, time.perf_counter()
            one_step(state, step)
            spent += time.perf_counter() - begun
            rows += bench.counter.rows
            if (step + 1) % LOOK_EVERY[mode] == 0:
                found = bench.effect(bench.slider(state, attribute), attribute, faces)
                seen = {"effect": found.effect, "drift": found.drift}
                trail.append({"step": step + 1, "seconds": spent, **seen})
                if found.effect >= goal:
                    break
    reached = found.effect >= goal
    report(
        f"{attribute} seed {seed} {mode}: {spent:.1f} s, {step + 1} steps, {rows} "
        f"forward-equivalents, effect {found.effect:+.3f}, drift {found.drift:.4f}"
        f"{'' if reached else ' (goal not reached)'}"
    )
    share = max(found.effect, 1e-6) / bench.world.ranges[attribute]
    drift = found.drift, found.drift / share
    return Race(spent, rows, step + 1, found.effect, *drift, reached, trail)


def train(
    bench: TrainBench,
    attributes: list[str],
    seeds: int,
    count: int,
    report: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Races over attributes and seeds. count: faces to look at. save: is given the figures so far,
    after each seed.

    wall_ratio_cached, wall_ratio_live: medians of the reference's seconds over theirs, within an
    attribute and a seed; `_spread`: min and max. forward_equivalents: medians by mode.
    drift_per_effect: medians by mode, at the goal.
    """
    kind = bench.world.kind
    attributes = attributes or list(USUAL[kind])
    if unknown := [name for name in attributes if name not in GOALS[kind]]:
        raise ValueError(f"attributes: got {unknown}; expected some of {', '.join(GOALS[kind])}")
    held_out = bench.world.held_out(count)
    races: dict[str, list[Race]] = {mode: [] for mode in MODES}
    figures: dict[str, Any] = {}
    for seed in range(seeds):
        for attribute in attributes:
            for mode in MODES:
                one = race(bench, mode, attribute, seed, held_out, report)
                races[mode].append(one)
        about = {"base": bench.world.base, "faces": len(held_out.subjects), "seeds": seed + 1}
        figures = {**about, "attributes": attributes, **_summary(races)}
        save(figures)
    return figures


def _summary(races: dict[str, list[Race]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    reference = races["concept_sliders"]
    for mode in ("cached", "live"):
        ratios = [a.seconds / b.seconds for a, b in zip(reference, races[mode], strict=True)]
        figures[f"wall_ratio_{mode}"] = statistics.median(ratios)
        figures[f"wall_ratio_{mode}_spread"] = [min(ratios), max(ratios)]
    for key, value in (
        ("wall_seconds", lambda r: r.seconds),
        ("forward_equivalents", lambda r: r.forward_equivalents),
        ("effect", lambda r: r.effect),
        ("drift_per_effect", lambda r: r.drift_per_effect),
        ("reached", lambda r: r.reached),
    ):
        figures[key] = {mode: statistics.median(map(value, runs)) for mode, runs in races.items()}
    return figures
