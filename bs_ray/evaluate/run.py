"""Evaluate: tasks through Ray Data, one table of measurements, and all that follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import ray
from rich.console import Console

from bs_ray.config import EvalJob
from bs_ray.evaluate.arms import Arm, arms_of
from bs_ray.evaluate.bases import Sheet, base_measure
from bs_ray.evaluate.figures import Wanted, figures_of, without_nan
from bs_ray.evaluate.judging import judging_of
from bs_ray.evaluate.outputs import write_outputs
from bs_ray.evaluate.parts import Parts
from bs_ray.evaluate.splits import Split, open_splits
from bs_ray.evaluate.sweep import (
    BaseTask,
    PairTask,
    Sweeper,
    SweepTask,
    Task,
    base_tasks,
    cost_tasks,
    pair_tasks,
    sweep_tasks,
)
from bs_ray.evaluate.trust import identity_test
from bs_ray.images.faces import need_centerface
from bs_ray.progress import bar
from bs_ray.ray_session import ray_session
from bs_ray.storage import Store


def evaluate(job: EvalJob, *, console: Console | None = None) -> dict:
    """Measure what the job asks for; the figures, as written to metrics.json.

    Writes below `job.output`, a folder or s3://, what `write_outputs` lists. The same command goes
    on after an interruption. Raises BaseNotFound, SliderError, JudgeUnavailable, FacesUnavailable,
    EmptyInputError, JobError, ValueError or StorageError before any work.
    """
    console = console or Console()
    if job.judges:  # by absolute paths, since workers have folders of their own
        job = job.model_copy(update={"judges": job.judges.absolute()})
    arms = arms_of(job)
    splits = open_splits(job)
    wanted = check(job, arms, splits)
    base = base_measure(job, splits, wanted.judging) if job.base_images else None
    elsewhere = notes_of(arms)
    for note in elsewhere:
        console.print(f"{job.name}: {note}", soft_wrap=True)
    parts = Parts(job, splits, wanted.judging, base)
    sweeps = sweep_tasks(job, arms, splits)
    costs = cost_tasks(splits) if job.methods or job.compare else []
    with ray_session(num_cpus=max(4, job.workers + 1)):
        tasks: list[Task] = [*sweeps, *pair_tasks(splits), *base_tasks(job)]
        frames = _measured(job, splits, parts, tasks, console)
        spent = _measured(job, splits, parts, costs, console)  # alone, since it takes the time
    table = pd.concat([frame for task, frame in frames if isinstance(task, SweepTask)])
    order = ["split", "group", "arm", "item", "strength"]
    table = table.sort_values(order, ignore_index=True)
    figures = figures_of(job, wanted, table)
    sheets: list[Sheet] = []
    if base:
        rows = pd.concat([frame for task, frame in frames if isinstance(task, BaseTask)])
        figures["base"] = without_nan(base.figures(rows))
        sheets = base.sheets(rows)
    if elsewhere:
        figures["other_bases"] = elsewhere
    if spent:
        figures["costs"] = _costs(spent[0][1])
    for task, rows in frames:
        if isinstance(task, PairTask):
            judges = wanted.judging[task.split].panel.identity
            figures["splits"][task.split]["identity_test"] = identity_test(judges, rows)
    write_outputs(job, figures, table, sheets)
    return json.loads(Store(job.output).read("metrics.json"))


def check(job: EvalJob, arms: Sequence[Arm], splits: Mapping[str, Split]) -> Wanted:
    """What is wanted of which judges, once everything that takes seconds is checked."""
    Store(job.output).check(write=True)
    judging = judging_of(job, arms, splits)
    sliders = {arm: arm.resolved() for arm in arms}
    for arm, slider in sliders.items():
        for strength in job.strengths:
            slider.card.lora_scale(strength, arm.editor.calibrated)
    if job.base_images:
        base_measure(job, splits, judging)
    regions = {arm.editor.region for arm in arms}
    if "face" in regions or any(its.panel.needs_faces for its in judging.values()):
        need_centerface()
    return Wanted.of(arms, sliders, judging, splits)


def notes_of(arms: Sequence[Arm]) -> list[str]:
    """What has to be said of sliders that are used on another base than their own."""
    return list(dict.fromkeys(filter(None, (arm.resolved().card.elsewhere for arm in arms))))


class _Measurer:
    """The Ray Data actor: numbers of tasks come in, the rows that its worker measures go out."""

    def __init__(self, worker: Callable[[], Any], tasks: list[Task]):
        self.worker, self.tasks = worker(), tasks

    def __call__(self, batch: dict) -> pd.DataFrame:
        [number] = batch["id"]
        return pd.DataFrame(self.worker.measure(self.tasks[int(number)])).assign(task=int(number))


def _measured(
    job: EvalJob,
    splits: Mapping[str, Split],
    parts: Parts,
    tasks: Sequence[Task],
    console: Console,
) -> list[tuple[Task, pd.DataFrame]]:
    """Every task's rows: an earlier run's are read, the others are measured and kept."""
    found = parts.done(tasks)
    missing = [task for task in tasks if task not in found]
    if missing:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        device = "cuda" if gpus else "cpu"
        with bar(console, "Evaluating", sum(task.count for task in missing), "faces") as report:
            worker = partial(Sweeper, job, splits, device)
            for number, rows in _stream(
                worker, missing, min(job.workers, gpus or job.workers), gpus
            ):
                parts.keep(missing[number], rows)
                report(missing[number].count)
        # Ray makes tensors of lists: read back, so that a first run has a resumed one's rows.
        found |= parts.done(missing)
    return [(task, found[task]) for task in tasks]


def _stream(
    worker: Callable[[], Any], tasks: Sequence[Task], actors: int, gpus: int
) -> Iterator[tuple[int, pd.DataFrame]]:
    """(number of the task, its rows) as they come, through a pool of actors. gpus: the cluster's,
    of which each actor takes one where there are any."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.range(len(tasks), override_num_blocks=len(tasks)).map_batches(
        _Measurer,
        fn_constructor_args=(worker, list(tasks)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=actors, initial_size=min(actors, len(tasks))
        ),
        num_cpus=1,
        num_gpus=1 if gpus else None,
    )
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for number, rows in batch.to_pandas().groupby("task"):
            yield int(number), rows.drop(columns="task")


def _costs(rows: pd.DataFrame) -> dict:
    """By arm, with the means over groups."""
    columns = ["evaluations", "seconds", "seconds_spread"]
    return rows.groupby("arm", sort=False)[columns].mean().to_dict("index")
