"""Sliders of words against trained ones on a tiny base, at the same effect, with their costs.

Both have the same prompts and eta. A trained one is made as jobs/tiny/train-four.yaml makes it, in
this process; its seed is also that of the edits' noise. For each, the strength is looked for that
moves the attribute by a goal from minus to plus, on faces that no figure uses; there it is measured
on held-out faces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bs_ray.bench.train import GUIDED_ONLY, TrainBench, bench_job, fresh_hooks, prompts_of
from bs_ray.config import EditorSettings, Words
from bs_ray.editing.editor import Edit, Editor, outputs_of
from bs_ray.images.pixels import pixels_of
from bs_ray.sliders.slider import Slider
from bs_ray.tiny import faces
from bs_ray.train.loop import one_step

GOALS = {"smile": 0.3, "age": 0.6, "chubby": 0.4}
"""Attribute -> its move from minus to plus the matched strength; as in
jobs/tiny/displacement.yaml."""
MEASURES = ("strength", "effect", "drift", "identity", "perceptual", "evaluations", "seconds")
_TRAINED = {
    "batch_size": 4,
    "lr": 0.002,
    "steps": 80,
    "losses": {"eta": 3.0, **GUIDED_ONLY},
    "teacher": {"mode": "cached", "samples": 256},
}
_GRID = (0.25, 0.5, 1.0, 1.5, 2.0)
_MATCH_FACES, _FACES = 16, 64
_MATCH_SEED, _HELD_OUT_SEED = 4_000_000, 5_000_000
_BATCH = 16
_TIMED = 5


@dataclass
class _Arm:
    """One slider, trained or of words."""

    slider: Slider
    training_s: float = 0.0
    training_rows: int = 0


def words(
    attributes: Sequence[str], seeds: int, base: str, report: Callable[[str], None]
) -> dict[str, Any]:
    """Figures by attribute and arm, as mean and standard deviation over the seeds.

    strength: the matched one. effect: the attribute's move from minus to plus, at it. drift: mean
    absolute move of the others, identity and perceptual: similarity and distance, of both ends
    against the photo. evaluations, seconds: of one edit of a photo. training_seconds,
    training_evaluations: of a trained slider. pays_after_photos, pays_after_photos_by_evaluations:
    from how many edits on training costs less than it saves.
    """
    bench = TrainBench.load(base)
    found: dict[str, Any] = {"base": base, "seeds": seeds, "faces": _FACES, "attributes": {}}
    for attribute in attributes:
        runs: dict[str, list[dict[str, float]]] = {"trained": [], "words": []}
        for seed in range(seeds):
            arms = {"trained": _train(bench, attribute, seed, base), "words": _of(bench, attribute)}
            costs = _costs(bench, arms)
            for name, arm in arms.items():
                one = _at_the_goal(bench, arm.slider, attribute, seed) | costs[name]
                one["training_seconds"] = arm.training_s
                one["training_evaluations"] = arm.training_rows
                runs[name].append(one)
                shown = "  ".join(f"{m} {one[m]:.4g}" for m in MEASURES)
                report(f"{attribute} seed {seed} {name}: {shown}")
        found["attributes"][attribute] = {n: _summary(r) for n, r in runs.items()} | _pays(runs)
    return found


def _of(bench: TrainBench, attribute: str) -> _Arm:
    said = Words.model_validate(prompts_of(attribute))
    return _Arm(Slider.of_words(said, "tiny", bench.model.base_id, attribute))


def _train(bench: TrainBench, attribute: str, seed: int, base: str) -> _Arm:
    job = bench_job(attribute, seed, base=base, **_TRAINED)
    with fresh_hooks(bench.model):
        bench.counter.rows, begun = 0, time.perf_counter()
        state = bench.train_state(job, bench.samples(job))
        for step in range(job.steps):
            one_step(state, step)
        seconds = time.perf_counter() - begun
        return _Arm(bench.slider(state, attribute), seconds, bench.counter.rows)


def _at_the_goal(bench: TrainBench, slider: Slider, attribute: str, seed: int) -> dict[str, float]:
    own = bench.judges.reader.names.index(attribute)
    goal, photos = GOALS[attribute], faces.render(faces.sample_scenes(_MATCH_FACES, _MATCH_SEED))
    both = [sign * scale for scale in _GRID for sign in (1, -1)]
    read = bench.judges.reader.read(_edited(bench, slider, photos, both, seed).flatten(0, 1))
    moves = read[:, own].view(len(photos), len(_GRID), 2).mean(0)
    effects = [0.0, *(moves[:, 0] - moves[:, 1]).tolist()]
    strength = _reaching(goal, [0.0, *_GRID], effects)
    held_out = faces.render(faces.sample_scenes(_FACES, _HELD_OUT_SEED))
    seen = _edited(bench, slider, held_out, [strength, -strength], seed)
    return {"strength": strength, **_judged(bench, held_out, seen, own)}


def _reaching(goal: float, strengths: Sequence[float], effects: Sequence[float]) -> float:
    """The least strength with the goal's effect; the largest one where none has it."""
    for k in range(1, len(strengths)):
        if effects[k] >= goal:
            share = (goal - effects[k - 1]) / (effects[k] - effects[k - 1])
            return strengths[k - 1] + share * (strengths[k] - strengths[k - 1])
    return strengths[-1]


def _judged(bench: TrainBench, photos: Tensor, seen: Tensor, own: int) -> dict[str, float]:
    """Of edits [F, 2, 3, H, W] at plus and at minus."""
    judges, flat, twice = bench.judges, seen.flatten(0, 1), photos.repeat_interleave(2, 0)
    read = judges.reader.read(flat).unflatten(0, (-1, 2))
    away = (read - judges.reader.read(photos)[:, None]).abs()
    others = [i for i in range(read.shape[2]) if i != own]
    return {
        "effect": float((read[:, 0, own] - read[:, 1, own]).mean()),
        "drift": float(away[:, :, others].mean()),
        "identity": float(judges.identity.similarity(flat, twice).mean()),
        "perceptual": float(judges.perceptual.distance(flat, twice).mean()),
    }


@torch.no_grad()
def _edited(
    bench: TrainBench, slider: Slider, photos: Tensor, strengths: Sequence[float], seed: int
) -> Tensor:
    """Photos [F, 3, H, W] in [-1, 1] at each strength: [F, K, 3, H, W]."""
    editor = Editor(bench.model, [slider], EditorSettings(calibrated=False))
    mixes = [editor.mix({slider.reference: strength}) for strength in strengths]
    edits = [Edit(f"f{i}", photo, mixes, seed) for i, photo in enumerate(pixels_of(photos))]
    parts = [editor.edit(edits[i : i + _BATCH]) for i in range(0, len(edits), _BATCH)]
    editor.close()
    done = np.stack([[o.pixels for o in outputs_of(one)] for part in parts for one in part])
    return torch.from_numpy(done).permute(0, 1, 4, 2, 3) / 127.5 - 1


def _costs(bench: TrainBench, arms: dict[str, _Arm]) -> dict[str, dict[str, float]]:
    """Evaluations and seconds of one edit in a full batch: the median, the arms in turn."""
    photos = pixels_of(faces.render(faces.sample_scenes(_BATCH, _MATCH_SEED)))
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


def _summary(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "mean": mean(run[key] for run in runs),
            "sd": stdev(run[key] for run in runs) if len(runs) > 1 else 0.0,
        }
        for key in runs[0]
    }


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
