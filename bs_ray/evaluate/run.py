"""Evaluate sliders: a grid as a Ray Data job, one table of measurements, figures and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import ray
from rich.console import Console

from bs_ray.config import EvalJob
from bs_ray.evaluate.metrics import slider_figures
from bs_ray.evaluate.report import render_report
from bs_ray.evaluate.sweep import BASE, Sweeper, tasks
from bs_ray.evaluate.worlds import open_world
from bs_ray.models import absolute_base, identify_base
from bs_ray.models.base import BaseNotFound
from bs_ray.progress import bar
from bs_ray.ray_session import ray_session
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store


def evaluate(job: EvalJob, *, console: Console | None = None) -> dict:
    """Measure every slider of the job on every split; the figures, as written to metrics.json.

    Writes report.html, metrics.json and metrics.parquet (a row for each face and strength) below
    `job.output`, a folder or s3://. Raises BaseNotFound, SliderError, JobError or StorageError
    before any work.
    """
    console = console or Console()
    names = check(job)
    job = with_places(job)
    output = Store(job.output)
    with ray_session(num_cpus=max(4, job.workers + 1)):
        frames = list(measured(job, Sweeper, tasks(job), console))
    base = [frame for frame in frames if frame["setting"].iloc[0] == BASE]
    table = pd.concat([frame for frame in frames if frame["setting"].iloc[0] != BASE])
    table = table.sort_values(["setting", "slider", "face", "strength"], ignore_index=True)
    figures: dict = {
        "name": job.name,
        "sliders": summarise(job, table, names),
        "interference": interference(job, table, names),
    }
    if base:
        rows = pd.concat(base).sort_values("face")
        figures["base"] = open_world(job.base).base_figures(rows)
    output.write("metrics.parquet", to_parquet(table))
    output.write("metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    output.write("report.html", render_report(job, figures, table).encode())
    return figures


def to_parquet(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file."""
    file = BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def with_places(job: EvalJob) -> EvalJob:
    """The job with absolute places, since actors elsewhere have working folders of their own."""
    places = {"registry": Registry(job.registry).store.uri, "base": absolute_base(job.base)}
    return job.model_copy(update=places)


def check(job: EvalJob) -> list[str]:
    """The names of the reader's attributes, once everything that takes seconds is checked."""
    base_id = identify_base(job.base)
    reader = open_world(job.base).judges.reader
    Store(job.output).check(write=True)
    registry = Registry(job.registry)
    registry.store.check()
    for reference, attribute in job.sliders.items():
        registry.resolve(reference).check_base(base_id)
        if attribute not in reader.names:
            raise BaseNotFound(
                f"sliders.{reference}: got attribute {attribute!r}; expected one of "
                f"{', '.join(reader.names)}"
            )
    return list(reader.names)


class _Measurer:
    """The Ray Data actor: numbers of items come in, the rows that its worker measures go out."""

    def __init__(self, worker: Callable[[EvalJob], Any], job: EvalJob, items: list):
        self.worker, self.items = worker(job), items

    def __call__(self, batch: dict) -> pd.DataFrame:
        return pd.DataFrame(
            [row for index in batch["id"] for row in self.worker.measure(self.items[int(index)])]
        )


def measured(
    job: EvalJob, worker: Callable[[EvalJob], Any], items: Sequence[Any], console: Console
) -> Iterator[pd.DataFrame]:
    """Every item's rows as they come, through a pool of actors, with a bar that counts faces.

    worker(job) is an object with `measure(item) -> rows`; an item has a `count` of faces.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.range(len(items), override_num_blocks=len(items)).map_batches(
        _Measurer,
        fn_constructor_args=(worker, job, list(items)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=job.workers),
        num_cpus=1,
    )
    with bar(console, "Evaluating", sum(item.count for item in items), "faces") as report:
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            rows = batch.to_pandas()
            report(rows["face"].nunique())
            yield rows


def summarise(job: EvalJob, table: pd.DataFrame, names: list[str]) -> dict:
    """Figures by slider and split."""
    count = len(job.strengths)
    found: dict = {}
    for (slider, split), rows in table.groupby(["slider", "setting"]):

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
        found.setdefault(slider, {})[split] = figures.as_dict()
    return found


def interference(job: EvalJob, table: pd.DataFrame, names: list[str]) -> dict:
    """By slider, how far every attribute moves from strength -1 to +1, mean and with its sign.

    Over the job's first split. For all attributes but the slider's own, 0 would be best.
    """
    split = next(iter(job.splits))
    found = {}
    for slider in job.sliders:
        rows = table[(table["setting"] == split) & (table["slider"] == slider)]
        ends = [
            np.stack(rows[rows["strength"] == strength].sort_values("face")["readings"].to_list())
            for strength in (-1.0, 1.0)
        ]
        found[slider] = dict(zip(names, (ends[1] - ends[0]).mean(0).tolist(), strict=True))
    return found
