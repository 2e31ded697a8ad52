"""The paper's ablation (Table II) and what goes past it, at matched effect, on an embedded base.

A slider that moves little also harms little, so arms are compared where the attribute moves equally
far: each is swept over strengths of both signs and interpolated to a few effects. Seeds are paired:
an arm's figure is its share of what the arm "neither" does with the same seed. Everything runs in
this process with the plain engine, and what was measured is kept: a run that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bs_ray.bench.sweeps import NEITHER, Notebook, Run
from bs_ray.bench.train_bench import TrainBench, fresh_hooks
from bs_ray.bench.world import Faces, apart, identity_distances, moves, read, unedited
from bs_ray.config.train import PAPER
from bs_ray.sliders.slider import Slider
from bs_ray.train.loop import one_step

PLAIN = {"perceptual": 0.0, "soft_mask": 0.0}
TARGET_CRITIC = {
    "adversarial_share": 0.3,
    "adversarial_real": "target",
    "discriminator": "features",
    "discriminator_steps": 3,
    "discriminator_replay": 32,
}
PHOTO_CRITIC = TARGET_CRITIC | {
    "adversarial_share": 0.1,
    "adversarial_real": "photos",
    "adversarial_fake": "edit",
}
ARMS: dict[str, dict[str, Any]] = {
    "neither": {"losses": PLAIN},
    "the paper": {"losses": PAPER},
    "perceptual, frozen": {"losses": {"soft_mask": 0.0, "perceptual_reference": "frozen"}},
    "perceptual, target": {"losses": {"soft_mask": 0.0}},
    "mask": {"losses": {"perceptual": 0.0}},
    "mask, perceptual (default)": {},
    "mask, adversary": {"losses": {"perceptual": 0.0} | TARGET_CRITIC, "discriminator_lr": 2e-3},
    "default, adversary": {"losses": TARGET_CRITIC, "discriminator_lr": 2e-3},
    "the same, untrained": {"losses": TARGET_CRITIC, "discriminator_lr": 1e-12},
    "adversary, photos and edits": {"losses": PLAIN | PHOTO_CRITIC, "discriminator_lr": 2e-3},
    "lower eta": {"losses": PLAIN | {"eta": 2.1}},
    "more steps": {"losses": PLAIN, "steps": 90},
}
"""Arm -> settings of the training job. The last two and the untrained adversary are controls."""
GOALS = {
    "drawn": {"age": (0.3, 0.45), "smile": (0.15, 0.22), "chubby": (0.2, 0.3)},
    "photos": {"age": (8.0, 14.0), "smile": (0.2, 0.35)},
}
"""World -> attribute -> moves of each sign at which arms are compared, in the reading's unit."""
STRENGTHS = {"drawn": (0.4, 0.8, 2.6), "photos": (0.8, 1.6, 2.6)}
"""World -> beside 0. The first two enclose most goals, since harms do not grow as the effect does;
sliders are trained up to 2, so the last one over-drives them."""
_SHARED = {"steps": 60, "batch_size": 8, "lr": 2e-3}


def ablation(
    bench: TrainBench,
    attributes: Sequence[str],
    seeds: int,
    arms: Sequence[str],
    count: int,
    file: Path | None,
    report: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Attribute -> arm -> what `compared` says of it; `runs`: every sweep.

    count: held-out faces. file: where the figures are kept, and gone on from. report(done, total,
    line): after every run. Raises ValueError for an attribute that the world has no goal for.
    """
    world, names = bench.world, [NEITHER, *(name for name in arms if name != NEITHER)]
    if unknown := [name for name in attributes if name not in GOALS[world.kind]]:
        known = ", ".join(GOALS[world.kind])
        raise ValueError(f"attributes: got {unknown} on base {world.base}; expected {known}")
    jobs = [bench.job(attributes[0], 0, **_settings(arm)) for arm in names]
    if any(job.losses.needs_features for job in jobs):
        _ = bench.features  # missing ones are an error now, not an hour later
    faces = world.held_out(count)
    about = {
        "base": world.base,
        "base_id": world.model.base_id,
        "world": world.kind,
        "faces": len(faces.subjects),
        "strengths": list(STRENGTHS[world.kind]),
        "features": world.eyes,
        "judges": [judge.card.name for judge in world.panel.judges],
    }
    goals = GOALS[world.kind]
    notebook = Notebook.open(file, about, goals)
    wanted = [(a, seed, arm) for seed in range(seeds) for a in attributes for arm in names]
    for done, (attribute, seed, arm) in enumerate(wanted, start=1):
        if not notebook.holds(attribute, seed, arm, ARMS[arm]):
            notebook.add(_one(bench, faces, attribute, seed, arm))
            report(done, len(wanted), _line(notebook.runs[-1], goals[attribute][0]))
    return notebook.figures()


def _settings(arm: str) -> dict[str, Any]:
    given = ARMS[arm]
    return {**_SHARED, **given, "losses": {"eta": 3.0} | given.get("losses", {})}


def _one(bench: TrainBench, faces: Faces, attribute: str, seed: int, arm: str) -> Run:
    job = bench.job(attribute, seed, **_settings(arm))
    with fresh_hooks(bench.model):
        begun = time.process_time()
        state = bench.train_state(job)
        numbers: dict[str, float] = {}
        for step in range(job.steps):
            numbers = one_step(state, step)
        seconds = time.process_time() - begun
        slider = bench.slider(state, attribute)
    sweep = _sweep(bench, faces, slider, attribute)
    return Run(attribute, seed, arm, ARMS[arm], seconds, sweep, numbers)


def _sweep(
    bench: TrainBench, faces: Faces, slider: Slider, attribute: str
) -> dict[str, dict[str, list[float]]]:
    """See Run.sweep."""
    found: dict[str, dict[str, list[float]]] = {}
    strengths = np.array(STRENGTHS[bench.world.kind])
    for sign in (-1, 1):
        edits = bench.edited(slider, faces, (sign * strengths).tolist())
        versions = np.concatenate([unedited(faces)[:, None], edits], axis=1)
        found[str(sign)] = _measured(bench, faces, versions, attribute, sign)
    return found


def _measured(
    bench: TrainBench, faces: Faces, versions: np.ndarray, attribute: str, sign: int
) -> dict[str, list[float]]:
    """Effect and harms of each version [F, K, H, W, 3], of which the first is unedited."""
    world = bench.world
    readings = read(world, faces, versions)
    identity = identity_distances(world, faces, versions)
    maps = [world.features(list(versions[:, k])) for k in range(versions.shape[1])]
    own = list(world.ranges).index(attribute)
    found: dict[str, list[float]] = {}
    for k, seen in enumerate(maps):
        moved = moves(world, attribute, sign, readings[:, 0], readings[:, k])
        measures = {
            "effect": moved.effect,
            "drift": moved.drift,
            "identity": float(identity[:, k].mean()),
            "distance": apart(seen, maps[0]),
            **faces.realism(attribute, readings[:, k, own], list(versions[:, k]), seen),
        }
        for name, value in measures.items():
            found.setdefault(name, []).append(value)
    return found


def _line(run: Run, goal: float) -> str:
    found = run.at(goal)
    harms = ", ".join(f"{name} {value:.4f}" for name, value in (found or {}).items())
    return (
        f"{run.attribute}, seed {run.seed}, {run.arm}: {run.seconds:.0f} s of processor time, "
        f"{harms or 'goal not reached'}, at the far end {run.far['effect']:+.3f}"
    )
