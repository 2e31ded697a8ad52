"""Sliders of words against trained ones on an embedded base, at the same effect, with their costs.

Both have the same prompts and eta. A trained one is made as jobs/tiny/train-four.yaml makes it, in
this process; its seed is also that of the edits' noise. For each, the strength is looked for that
moves the attribute by a goal from minus to plus, on faces that no figure uses; there it is measured
on held-out faces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from bs_ray.bench.train_bench import GUIDED_ONLY, TrainBench, fresh_hooks, mean_sd
from bs_ray.bench.world import Faces, apart, identity_distances, moves, read, unedited
from bs_ray.config import EditorSettings, Words
from bs_ray.editing.editor import Edit, Editor
from bs_ray.sliders.slider import Slider
from bs_ray.train.loop import one_step

GOALS = {
    "drawn": {"smile": 0.3, "age": 0.6, "chubby": 0.4},
    "photos": {"smile": 0.5, "age": 20.0},
}
"""World -> attribute -> its move from minus to plus the matched strength, in the reading's unit;
those of the drawn world as in jobs/tiny/displacement.yaml."""
MEASURES = ("strength", "effect", "drift", "identity", "distance", "evaluations", "seconds")
_TRAINED = {
    "batch_size": 4,
    "lr": 0.002,
    "steps": 80,
    "losses": {"eta": 3.0, **GUIDED_ONLY},
    "teacher": {"mode": "cached", "samples": 256},
}
_GRID = (0.25, 0.5, 1.0, 1.5, 2.0)
_MATCH_FACES, _FACES = 16, 64
_MATCH_PART, _MEASURED_PART = 1, 2
_BATCH = 16
_TIMED = 5


@dataclass
class _Arm:
    """One slider, trained or of words."""

    slider: Slider
    training_s: float = 0.0
    training_rows: int = 0


def words(
    bench: TrainBench,
    attributes: Sequence[str],
    seeds: int,
    report: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Figures by attribute and arm, as mean and standard deviation over the seeds. save: is given
    the figures so far after each attribute.

    strength: the matched one. effect: the attribute's move from minus to plus, at it. drift: mean
    absolute move of the others; identity, distance: the identity judge's distance, and that of
    features that no loss saw, of both ends from the photo. evaluations, seconds: of one edit of a
    photo. training_seconds, training_evaluations: of a trained slider. pays_after_photos,
    pays_after_photos_by_evaluations: from how many edits on training costs less than it saves.
    """
    world = bench.world
    attributes = attributes or list(GOALS[world.kind])
    if unknown := [name for name in attributes if name not in GOALS[world.kind]]:
        known = ", ".join(GOALS[world.kind])
        raise ValueError(f"attributes: got {unknown} on base {world.base}; expected {known}")
    faces = world.held_out(_MATCH_FACES, _MATCH_PART), world.held_out(_FACES, _MEASURED_PART)
    about = {"base": world.base, "seeds": seeds, "faces": len(faces[1].subjects)}
    found: dict[str, Any] = {**about, "features": world.eyes, "attributes": {}}
    for attribute in attributes:
        runs: dict[str, list[dict[str, float]]] = {"trained": [], "words": []}
        for seed in range(seeds):
            arms = {"trained": _train(bench, attribute, seed), "words": _of(bench, attribute)}
            costs = _costs(bench, arms, faces[0])
            for name, arm in arms.items():
                one = _at_the_goal(bench, arm.slider, attribute, seed, *faces) | costs[name]
                one["training_seconds"] = arm.training_s
                one["training_evaluations"] = arm.training_rows
                runs[name].append(one)
                shown = "  ".join(f"{m} {one[m]:.4g}" for m in MEASURES)
                report(f"{attribute} seed {seed} {name}: {shown}")
        found["attributes"][attribute] = {n: _summary(r) for n, r in runs.items()} | _pays(runs)
        save(found)
    return found


def _of(bench: TrainBench, attribute: str) -> _Arm:
    said = Words.model_validate(bench.world.prompts(attribute))
    return _Arm(Slider.of_words(said, bench.world.base, bench.model.base_id, attribute))


def _train(bench: TrainBench, attribute: str, seed: int) -> _Arm:
    job = bench.job(attribute, seed, **_TRAINED)
    with fresh_hooks(bench.model):
        bench.counter.rows, begun = 0, time.perf_counter()
        state = bench.train_state(job, bench.samples(job))
        for step in range(job.steps):
            one_step(state, step)
        seconds = time.perf_counter() - begun
        return _Arm(bench.slider(state, attribute), seconds, bench.counter.rows)


def _at_the_goal(
    bench: TrainBench, slider: Slider, attribute: str, seed: int, match: Faces, measured: Faces
) -> dict[str, float]:
    own = list(bench.world.ranges).index(attribute)
    both = [sign * scale for scale in _GRID for sign in (1, -1)]
    seen = read(bench.world, match, bench.edited(slider, match, both, seed))[:, :, own].mean(0)
    effects = [0.0, *(seen[0::2] - seen[1::2]).tolist()]
    goal = GOALS[bench.world.kind][attribute]
    strength = _reaching(goal, [0.0, *_GRID], effects)
    edits = bench.edited(slider, measured, [strength, -strength], seed)
    return {"strength": strength, **_judged(bench, measured, edits, attribute)}


def _reaching(goal: float, strengths: Sequence[float], effects: Sequence[float]) -> float:
    """The least strength with the goal's effect; the largest one where none has it."""
    for k in range(1, len(strengths)):
        if effects[k] >= goal:
            share = (goal - effects[k - 1]) / (effects[k] - effects[k - 1])
            return strengths[k - 1] + share * (strengths[k] - strengths[k - 1])
    return strengths[-1]


def _judged(bench: TrainBench, faces: Faces, edits: np.ndarray, attribute: str) -> dict[str, float]:
    """Of edits [F, 2, H, W, 3] at plus and at minus."""
    world, photos = bench.world, unedited(faces)
    before = read(world, faces, photos[:, None])[:, 0]
    after = read(world, faces, edits)
    ends = [moves(world, attribute, sign, before, after[:, k]) for k, sign in enumerate((1, -1))]
    maps = [world.features(list(pictures)) for pictures in (photos, edits[:, 0], edits[:, 1])]
    return {
        "effect": ends[0].effect + ends[1].effect,
        "drift": (ends[0].drift + ends[1].drift) / 2,
        "identity": float(identity_distances(world, faces, edits).mean()),
        "distance": (apart(maps[1], maps[0]) + apart(maps[2], maps[0])) / 2,
    }


def _costs(bench: TrainBench, arms: dict[str, _Arm], faces: Faces) -> dict[str, dict[str, float]]:
    """Evaluations and seconds of one edit in a full batch: the median, the arms in turn."""
    photos = unedited(faces)[:_BATCH]
    taken: dict[str, list[float]] = {name: [] for name in arms}
    found: dict[str, dict[str, float]] = {}
    for _ in range(_TIMED):
        for name, arm in arms.items():
            editor = Editor(bench.model, [arm.slider], EditorSettings(calibrated=False))
            mix = editor.mix({arm.slider.reference: 1.0})
            edits = [Edit(f"f{i}", photo, [mix]) for i, photo in enumerate(photos)]
            before, begun = editor.evaluations, time.perf_counter()
            editor.edit(edits)
            taken[name].append((time.perf_counter() - begun) / _BATCH)
            found[name] = {"evaluations": (editor.evaluations - before) / _BATCH}
            editor.close()
    return {name: found[name] | {"seconds": median(taken[name])} for name in arms}


def _summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {key: mean_sd([run[key] for run in runs]) for key in runs[0]}


def _pays(runs: dict[str, list[dict[str, float]]]) -> dict[str, list[float]]:
    """Of each seed, the number of edits after which training has cost less than it saved."""
    pairs = list(zip(runs["trained"], runs["words"], strict=True))
    return {
        "pays_after_photos": [
            t["training_seconds"] / (w["seconds"] - t["seconds"]) for t, w in pairs
        ],
        "pays_after_photos_by_evaluations": [
            t["training_evaluations"] / (w["evaluations"] - t["evaluations"]) for t, w in pairs
        ],
    }
