"""Evaluate sliders: the grid as a Ray Data job, one table of measurements, figures and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bs_ray.config import EvalJob
from bs_ray.evaluate.base import caption_figures, vae_figures
from bs_ray.evaluate.metrics import slider_figures
from bs_ray.evaluate.report import write_report
from bs_ray.evaluate.sweep import Sweeper, tasks
from bs_ray.judges.load import WorldJudges
from bs_ray.models import absolute_base, base_folder, load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.ray_session import ray_session
from bs_ray.sliders.registry import Registry


def evaluate(job: EvalJob, *, console: Console | None = None) -> dict:
    """Measure every slider of the job in every setting; the figures, as written to metrics.json.

    Writes report.html, metrics.json and metrics.parquet (a row per face and strength) under
    `job.output`. Raises BaseNotFound, SliderError or JobError before any work.
    """
    console = console or Console()
    names = check(job)
    job = with_places(job)
    output = Path(job.output)
    output.mkdir(parents=True, exist_ok=True)
    with ray_session(num_cpus=max(4, job.workers + 1)):
        frames = list(measured(job, Sweeper, tasks(job), console))
    table = pd.concat(frames).sort_values(
        ["setting", "slider", "face", "strength"], ignore_index=True
    )
    figures: dict = {
        "name": job.name,
        "sliders": summarise(job, table, names),
        "interference": interference(job, table, names),
    }
    if job.base_images:
        figures["base"] = base_figures(job, console)
    table.to_parquet(output / "metrics.parquet")
    (output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_report(job, figures, table, output / "report.html")
    return figures


def with_places(job: EvalJob) -> EvalJob:
    """The job with absolute places: actors elsewhere have working folders of their own."""
    places = {"registry": Registry(job.registry).store.uri, "base": absolute_base(job.base)}
    return job.model_copy(update=places)


def check(job: EvalJob) -> list[str]:
    """What can be wrong is found in seconds; the reader's attribute names."""
    folder = base_folder(job.base)
    model = load_base(job.base)
    registry = Registry(job.registry)
    registry.store.check()
    reader = WorldJudges.load(folder).reader
    for reference, attribute in job.sliders.items():
        registry.resolve(reference).check_base(model.base_id)
        if attribute not in reader.names:
            raise BaseNotFound(
                f"sliders.{reference}: got attribute {attribute!r}; expected one of "
                f"{', '.join(reader.names)}"
            )
    return list(reader.names)


def base_figures(job: EvalJob, console: Console) -> dict:
    """How good the base is (see evaluate/base.py), from `job.base_images` pictures."""
    model, judges = load_base(job.base), WorldJudges.load(base_folder(job.base))
    count = job.base_images
    with _bar(console, "Measuring the base", count, "captions") as drawn:
        return {
            "images": count,
            **vae_figures(model, judges.reader, count),
            **caption_figures(model, judges.reader, count, drawn=drawn),
        }


class _Measurer:
    """The Ray Data actor: one worker with a `measure(item) -> rows`, items in, rows out."""

    def __init__(self, worker: Callable[[EvalJob], Any], job: EvalJob, items: list):
        self.worker, self.items = worker(job), items

    def __call__(self, batch: dict) -> pd.DataFrame:
        return pd.DataFrame(
            [row for index in batch["id"] for row in self.worker.measure(self.items[int(index)])]
        )


def measured(
    job: EvalJob, worker: Callable[[EvalJob], Any], items: Sequence[Any], console: Console
) -> Iterator[pd.DataFrame]:
    """Every item's rows as they come, through a pool of actors, with a bar in faces.

    worker(job) makes what has `measure(item) -> rows`; an item has a `count` of faces.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.range(len(items), override_num_blocks=len(items)).map_batches(
        _Measurer,
        fn_constructor_args=(worker, job, list(items)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=job.workers),
        num_cpus=1,
    )
    with _bar(console, "Evaluating", sum(item.count for item in items), "faces") as advance:
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            rows = batch.to_pandas()
            advance(rows["face"].nunique())
            yield rows


@contextmanager
def _bar(console: Console, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar with ETA on the console; what it gives moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn(unit), TimeRemainingColumn(), console=console) as bar:
        shown = bar.add_task(title, total=total)
        yield lambda count: bar.advance(shown, count)


def summarise(job: EvalJob, table: pd.DataFrame, names: list[str]) -> dict:
    """Figures by slider and setting."""
    count = len(job.strengths)
    found: dict = {}
    for (slider, setting), rows in table.groupby(["slider", "setting"]):

        def grid(column: str, rows: pd.DataFrame = rows) -> np.ndarray:
            values = np.stack(rows[column].to_list())
            return values.reshape(-1, count, *values.shape[1:])

        figures = slider_figures(
            np.array(job.strengths, dtype=float),
            grid("readings"),
            names.index(job.sliders[slider]),
            grid("identity"),
            grid("perceptual"),
            grid("clip"),
            bool(rows["zero_exact"].all()),
        )
        found.setdefault(slider, {})[setting] = figures.as_dict()
    return found


def interference(job: EvalJob, table: pd.DataFrame, names: list[str]) -> dict:
    """By slider, how far every attribute moves from strength -1 to +1, mean and with its sign.

    Over the job's first setting. Off a slider's own attribute, 0 would be best.
    """
    setting = next(iter(job.settings))
    found = {}
    for slider in job.sliders:
        rows = table[(table["setting"] == setting) & (table["slider"] == slider)]
        ends = [
            np.stack(rows[rows["strength"] == strength].sort_values("face")["readings"].to_list())
            for strength in (-1.0, 1.0)
        ]
        found[slider] = dict(zip(names, (ends[1] - ends[0]).mean(0).tolist(), strict=True))
    return found
