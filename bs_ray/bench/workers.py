"""Whole training runs on Ray: two workers against one, and sliders together against one by one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bs_ray.bench.drawn_world import prompts_of
from bs_ray.bench.overhead import overhead
from bs_ray.bench.train_bench import TrainBench, bench_job
from bs_ray.config import TrainJob
from bs_ray.ray_session import ray_session
from bs_ray.sliders.registry import Registry
from bs_ray.tiny.drawn import ingest_tiny_world
from bs_ray.train.run import train

TOGETHER = ("smile", "age", "chubby", "hair_length")
_STEPS, _BATCH = 60, 4
_FACES = 48


def workers(repeats: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Two workers against one at the same global batch.

    throughput_ratio: the median of steps/s of two over steps/s of one. overhead_share: see
    `overhead`.
    """
    figures: dict[str, Any] = {"overhead_share": overhead(report)}
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch, ray_session(num_cpus=6):
        ingest_tiny_world(f"{scratch}/data", photos=1, people=40, broken=0, seed=3)
        for repeat in range(repeats):
            for count in rates:
                job = _run_job(Path(scratch), f"workers-{count}-{repeat}", workers=count, steps=40)
                result = train(job)
                rates[count].append(result.steps / result.seconds)
                report(f"{count} workers: {rates[count][-1]:.2f} steps/s")
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    return figures | {
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_spread": [min(ratios), max(ratios)],
        "steps_per_s": {str(count): statistics.median(found) for count, found in rates.items()},
    }


def together(report: Callable[[str], None]) -> dict[str, Any]:
    """Four sliders in one run against four runs of one, with equal steps and rows for each slider.

    wall_ratio: seconds one by one over seconds together, of whole commands in one Ray session.
    steps_ratio: the same ratio of the training loops alone. effect: at strength 1, both ways.
    """
    bench = TrainBench.load()
    faces = bench.world.held_out(_FACES)
    effects: dict[str, dict[str, float]] = {"alone": {}, "together": {}}
    seconds = {"alone": 0.0, "together": 0.0}
    loops = {"alone": 0.0, "together": 0.0}
    with tempfile.TemporaryDirectory() as scratch, ray_session(num_cpus=6):
        place = Path(scratch)
        ingest_tiny_world(f"{scratch}/data", photos=1, people=40, broken=0, seed=3)
        runs = [("alone", {name: prompts_of(name)}) for name in TOGETHER]
        runs.append(("together", {name: prompts_of(name) for name in TOGETHER}))
        for way, sliders in runs:
            run_name = f"{way}-{'-'.join(sliders)}".replace("_", "-")
            job = _run_job(place, run_name, prompts=None, sliders=sliders, registry=place / way)
            begun = time.perf_counter()
            result = train(job)
            taken = time.perf_counter() - begun
            seconds[way] += taken
            loops[way] += result.seconds
            report(
                f"{way}: {', '.join(sliders)} in {taken:.1f} s, {result.seconds:.1f} s of it steps"
            )
        for way, found in effects.items():
            registry = Registry(str(place / way))
            for name in TOGETHER:
                found[name] = bench.effect(registry.resolve(name), name, faces).effect
    return {
        "wall_ratio": seconds["alone"] / seconds["together"],
        "steps_ratio": loops["alone"] / loops["together"],
        "seconds": seconds,
        "effect": effects,
    }


def _run_job(place: Path, run_name: str, **settings: Any) -> TrainJob:
    """A job of this bench, with a cached teacher."""
    losses = {"perceptual": 0, "soft_mask": 0}
    job = bench_job("smile", 0, batch_size=_BATCH, lr=2e-3, losses=losses)
    values = job.model_dump() | {
        "name": run_name,
        "photos": str(place / "data" / "lfw"),
        "runs": str(place / "runs"),
        "registry": str(place / "sliders"),
        "steps": _STEPS,
        "checkpoint_every": _STEPS,
        "calibrate": False,
        "tracking": {"tensorboard": False},
        "teacher": {"mode": "cached", "samples": 128, "cache": str(place / "cache")},
    }
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    return TrainJob.model_validate(values | settings)
