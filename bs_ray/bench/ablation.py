"""The paper's ablation (Table II) on the tiny base: four arms and two variations, several seeds.

An arm is a job file below jobs/tiny/ablation; a variation is the full one with a setting changed.
Everything runs in this process with the plain engine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bs_ray.bench.train import TrainBench, fresh_hooks
from bs_ray.config import TrainJob, shipped_job
from bs_ray.train.loop import one_step

ARMS: dict[str, tuple[str, list[str]]] = {
    "full": ("full", []),
    "no adversarial": ("no-adversarial", []),
    "no perceptual": ("no-perceptual", []),
    "neither": ("neither", []),
    "full + soft mask": ("full", ["losses.soft_mask=1.0"]),
    "full + contexts": ("full", ["prompts.disentangle=[male, female]", "losses.eta=1.5"]),
}
"""Arm -> (job file, overrides). Two contexts double the target's difference, hence they have half
the eta."""
ATTRIBUTE = "age"
MEASURES = ("effect", "drift", "drift_per_effect", "identity", "perceptual")


def ablation(seeds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Each arm's measures, as mean and standard deviation over the seeds.

    effect: mean move of the attribute at strengths -1 and +1, in the direction of their sign.
    drift: mean absolute move of the other attributes. identity, perceptual: against the unedited
    face.
    """
    bench = TrainBench.load()
    arms: dict[str, Any] = {}
    for name, (file, overrides) in ARMS.items():
        runs = [_one(bench, file, [*overrides, f"seed={seed}"]) for seed in range(seeds)]
        arms[name] = {
            measure: {
                "mean": statistics.mean(run[measure] for run in runs),
                "sd": statistics.stdev(run[measure] for run in runs) if seeds > 1 else 0.0,
            }
            for measure in MEASURES
        }
        shown = ", ".join(f"{m} {v['mean']:.4f} ± {v['sd']:.4f}" for m, v in arms[name].items())
        report(f"{name}: {shown}")
    return {"attribute": ATTRIBUTE, "seeds": seeds, "arms": arms}


def _one(bench: TrainBench, file: str, overrides: list[str]) -> dict[str, float]:
    job = shipped_job(f"tiny/ablation/{file}.yaml", [*overrides, "workers=1"])
    assert isinstance(job, TrainJob)
    with fresh_hooks(bench.model):
        state = bench.train_state(job)
        for step in range(job.steps):
            one_step(state, step)
        found = bench.effect(bench.slider(state, job.name), ATTRIBUTE, (-1.0, 1.0))
    return found | {"drift_per_effect": found["drift"] / max(found["effect"], 1e-6)}
