"""Make a table: checks, sliders, measurements, pages."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from bs_ray.bench.table.figures import Measured, row_figures
from bs_ray.bench.table.outputs import write_outputs
from bs_ray.bench.table.sliders import make_slider, training_photos, untrainable
from bs_ray.config import TableJob
from bs_ray.config.evaluate import WORDS as CLIP
from bs_ray.evaluate.arms import arms_of
from bs_ray.evaluate.judging import Judging, panel_of
from bs_ray.evaluate.run import evaluate
from bs_ray.evaluate.splits import open_splits
from bs_ray.ray_session import ray_session
from bs_ray.storage import Store
from bs_ray.train.planning.plan import plan, show


def make_table(job: TableJob, *, console: Console | None = None) -> dict[str, Any]:
    """Train what the registry lacks, measure everything, and write what `write_outputs` lists.

    The figures: `rows`, by label what `row_figures` says, None for a method that cannot be trained
    here; `absent`, why. The same command goes on after an interruption. Raises what train and
    evaluate raise; splits, judges and storage are checked before any work.
    """
    console = console or Console()
    absent = untrainable(job)
    methods = [method for method in job.methods if method not in absent]
    if len(methods) < 2:
        raise ValueError(f"methods: got fewer than two that can be trained here: {absent}")
    _check(job, methods)
    for method, why in absent.items():
        console.print(f"left out: {method}. {why}", markup=False, soft_wrap=True)
    figures: dict[str, Any] = {
        "name": job.name,
        "base": job.base,
        "rows": {},
        "absent": absent,
        "training_seconds": {},
    }
    measured: dict[str, Measured] = {}
    photos = training_photos(job)
    with ray_session(num_cpus=max(4, job.workers + 1)):
        for slider in job.sliders:
            trained = make_slider(job, slider, methods, photos, console)
            figures["training_seconds"][slider] = trained.seconds
            console.print(f"measuring {slider}", markup=False)
            evaluation = job.evaluation(slider, methods, trained.versions)
            measured[slider] = Measured.of(evaluation, evaluate(evaluation, console=console))
            figures["rows"] = {
                label: row_figures(job, label, measured[row.slider]) | dict.fromkeys(absent)
                for label, row in job.rows.items()
                if row.slider in measured
            }
            write_outputs(job, figures, measured)  # so far
    return figures


def plan_table(job: TableJob, gpu_memory_gb: float | None, console: Console) -> dict[str, Any]:
    """What each method's training takes, by `bs-ray train --plan`, without running anything.

    Raises PlanDoesNotFit and BaseNotFound.
    """
    first, count = next(iter(job.sliders)), len(job.sliders)
    found = {}
    for method in job.methods:
        if how := job.training(first, method):
            made = plan(how, gpu_memory_gb)
            console.rule(f"{method}: {count} sliders of {how.steps} steps each")
            show(made, console)
            found[method] = asdict(made)
    return found


def _check(job: TableJob, methods: list[str]) -> None:
    """What training need not wait for: storage, splits, and a judge for each row."""
    Store(job.output).check(write=True)
    for slider in job.sliders:
        evaluation = job.evaluation(slider, methods)
        splits = open_splits(evaluation)
        for split in splits.values():
            judging = Judging(panel_of(evaluation, split), {})
            if job.reads(slider) != CLIP:
                judging.measure(arms_of(evaluation)[0], slider)
