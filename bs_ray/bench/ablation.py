"""The paper's ablation (Table II) and what goes past it, at matched effect, on a tiny base.

A slider that moves little also harms little, so arms are compared where the attribute moves equally
far: each is swept over strengths of both signs and interpolated to a few effects. Seeds are paired:
an arm's figure is its share of what the arm "neither" does with the same seed. Everything runs in
this process with the plain engine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bs_ray.bench.train import HELD_OUT_SEED, TrainBench, bench_job, fresh_hooks
from bs_ray.config import EditorSettings
from bs_ray.config.train import PAPER
from bs_ray.editing.editor import Edit, Editor, outputs_of
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.judges.network import resized
from bs_ray.judges.perceptual import feature_distance
from bs_ray.sliders.slider import Slider
from bs_ray.tiny import faces
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
GOALS = {"age": (0.3, 0.45), "smile": (0.15, 0.22), "chubby": (0.2, 0.3)}
"""Attribute -> moves of each sign at which arms are compared (of a range of 1)."""
STRENGTHS = (0.8, 1.6, 2.6)
HARMS = ("drift", "identity", "distance", "truth")
_FACES = 44


@dataclass(frozen=True)
class Run:
    """One slider of one arm, seed and attribute."""

    seconds: float
    """Of the processor, to train it."""
    sweep: dict[int, dict[str, list[float]]]
    """Sign -> `effect` and the harms at strengths 0 and STRENGTHS."""
    numbers: dict[str, float]
    """What training said at its last step."""

    def at(self, goal: float) -> dict[str, float] | None:
        """The harms where the attribute has moved by `goal`, mean of both signs; None where it
        never has."""
        found = []
        for swept in self.sweep.values():
            effect = np.maximum.accumulate(swept["effect"])
            if effect[-1] < goal:
                return None
            found.append([float(np.interp(goal, effect, swept[name])) for name in HARMS])
        return dict(zip(HARMS, np.mean(found, axis=0).tolist(), strict=True))


def ablation(
    attributes: Sequence[str],
    seeds: int,
    arms: Sequence[str],
    base: str,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Attribute -> arm -> its measures over the seeds, as mean and standard deviation.

    drift: mean absolute move of the other attributes. identity: 1 - similarity. distance: of
    features that no loss saw. truth: RMSE to the renderer's own picture of the face with the
    attribute that is read off the edit. All four are changes against "neither", in percent.
    """
    bench = TrainBench.load(base)
    figures: dict[str, Any] = {"base": base, "seeds": seeds, "faces": _FACES, "attributes": {}}
    names = ["neither", *(name for name in arms if name != "neither")]
    for attribute in attributes:
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for seed in range(seeds):
            for name in names:
                runs[name].append(_one(bench, attribute, seed, ARMS[name]))
                report(f"{attribute}, seed {seed}, {name}: {_line(runs[name][-1], attribute)}")
        found = {name: _against(runs[name], runs["neither"], attribute) for name in names}
        figures["attributes"][attribute] = found
    return figures


def _one(bench: TrainBench, attribute: str, seed: int, settings: dict[str, Any]) -> Run:
    losses = {"eta": 3.0} | settings.get("losses", {})
    shared = {"steps": 60, "batch_size": 8, "lr": 2e-3}
    job = bench_job(attribute, seed, **(shared | settings | {"losses": losses}))
    with fresh_hooks(bench.model):
        begun = time.process_time()
        state = bench.train_state(job)
        numbers: dict[str, float] = {}
        for step in range(job.steps):
            numbers = one_step(state, step)
        seconds = time.process_time() - begun
        slider = bench.slider(state, attribute)
        sweep = {sign: _swept(bench, slider, attribute, sign) for sign in (-1, 1)}
    return Run(seconds, sweep, numbers)


@torch.no_grad()
def _swept(bench: TrainBench, slider: Slider, attribute: str, sign: int) -> dict[str, list[float]]:
    """The measures of the held-out faces at strength 0 and at STRENGTHS of one sign."""
    scene = {name: c[:_FACES] for name, c in faces.sample_scenes(_FACES, HELD_OUT_SEED).items()}
    photos = bench.held_out[:_FACES]
    editor = Editor(bench.model, [slider], EditorSettings())
    mixes = [editor.mix({slider.reference: sign * s}) for s in STRENGTHS]
    edits = [Edit(f"held-{i}", photo, mixes) for i, photo in enumerate(pixels_of(photos))]
    done = [o for i in range(0, len(edits), 16) for o in editor.edit(edits[i : i + 16])]
    editor.close()
    by_face = [[images_of(np.asarray(out.pixels)) for out in outputs_of(one)] for one in done]
    found: dict[str, list[float]] = {name: [] for name in ("effect", *HARMS)}
    for seen in (photos, *(torch.stack(column) for column in zip(*by_face, strict=True))):
        for name, value in _measured(bench, scene, photos, seen, attribute, sign).items():
            found[name].append(value)
    return found


def _measured(
    bench: TrainBench,
    scene: dict[str, Tensor],
    photos: Tensor,
    seen: Tensor,
    attribute: str,
    sign: int,
) -> dict[str, float]:
    reader = bench.judges.reader
    read, before = reader.read(seen), reader.read(photos)
    own = reader.names.index(attribute)
    move = (read - before).numpy()
    fresh = [reader.net.features(resized(images)) for images in (seen, photos)]
    unit = [[torch.nn.functional.normalize(m, dim=1, eps=1e-6) for m in maps] for maps in fresh]
    true = faces.render(scene | {attribute: read[:, own].clamp(0, 1)})
    return {
        "effect": float(sign * move[:, own].mean()),
        "drift": float(np.abs(np.delete(move, own, 1)).mean()),
        "identity": float((1 - bench.judges.identity.similarity(seen, photos)).mean()),
        "distance": float(feature_distance(*unit).mean()),
        "truth": float((seen - true).square().mean((1, 2, 3)).sqrt().mean()),
    }


def _line(run: Run, attribute: str) -> str:
    found = run.at(GOALS[attribute][0])
    harms = ", ".join(f"{name} {value:.4f}" for name, value in (found or {}).items())
    return f"{run.seconds:.0f} s of processor time, {harms or 'goal not reached'}"


def _against(runs: Sequence[Run], neither: Sequence[Run], attribute: str) -> dict[str, Any]:
    """An arm's harms as percentages more or less than those of "neither" of the same seed."""
    changes: dict[str, list[float]] = {name: [] for name in HARMS}
    reached = 0
    for one, plain in zip(runs, neither, strict=True):
        pairs = [(one.at(goal), plain.at(goal)) for goal in GOALS[attribute]]
        both = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
        reached += len(both) == len(pairs)
        for name in HARMS if both else ():
            ratios = [mine[name] / theirs[name] for mine, theirs in both]
            changes[name].append(100 * (statistics.mean(ratios) - 1))
    found: dict[str, Any] = {name: _mean_sd(values) for name, values in changes.items() if values}
    found |= {"reached": reached, "seconds": _mean_sd([one.seconds for one in runs])}
    for name in ("accuracy", "w_adversarial"):
        if name in runs[0].numbers:
            found[name] = _mean_sd([one.numbers[name] for one in runs])
    return found


def _mean_sd(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
