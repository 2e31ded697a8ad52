"""Evaluate sliders: the grid as a Ray Data job, one table of measurements, figures and a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bs_ray.config import EvalJob
from bs_ray.evaluate.base import caption_figures, vae_figures
from bs_ray.evaluate.metrics import slider_figures
from bs_ray.evaluate.report import write_report
from bs_ray.evaluate.sweep import Sweeper, tasks
from bs_ray.models import base_folder, load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.models.judges import Judges
from bs_ray.raysession import ray_session
from bs_ray.sliders.registry import Registry


def evaluate(job: EvalJob, *, console: Console | None = None) -> dict:
    """Measure every slider of the job in every setting; the figures, as written to metrics.json.

    Writes report.html, metrics.json and metrics.parquet (a row per face and strength) under
    `job.output`. Raises BaseNotFound, SliderError or JobError before any work.
    """
    console = console or Console()
    names = check(job)
    # Actors elsewhere have working folders of their own.
    job = job.model_copy(update={"registry": Registry(job.registry).store.uri})
    if job.base != "tiny":
        job = job.model_copy(update={"base": str(Path(job.base).absolute())})
    output = Path(job.output)
    output.mkdir(parents=True, exist_ok=True)
    with ray_session(num_cpus=max(4, job.workers + 1)):
        table = _run_grid(job, names, console)
    figures: dict = {"name": job.name, "sliders": summarise(job, table, names)}
    if job.base_images:
        with console.status("Measuring the base: round trips and captions"):
            figures["base"] = base_figures(job)
    table.to_parquet(output / "metrics.parquet")
    (output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_report(job, figures, table, output / "report.html")
    return figures


def check(job: EvalJob) -> list[str]:
    """What can be wrong is found in seconds; the reader's attribute names."""
    folder = base_folder(job.base)
    model = load_base(job.base)
    registry = Registry(job.registry)
    registry.store.check()
    reader = Judges.load(folder).reader
    for reference, attribute in job.sliders.items():
        registry.resolve(reference).check_base(model.base_id)
        if attribute not in reader.names:
            raise BaseNotFound(
                f"sliders.{reference}: got attribute {attribute!r}; expected one of "
                f"{', '.join(reader.names)}"
            )
    return list(reader.names)


def base_figures(job: EvalJob) -> dict:
    """How good the base is (see evaluate/base.py), from `job.base_images` pictures."""
    model, judges = load_base(job.base), Judges.load(base_folder(job.base))
    return {
        "images": job.base_images,
        **vae_figures(model, judges.reader, job.base_images),
        **caption_figures(model, judges.reader, job.base_images),
    }


class _Measure:
    """The Ray Data actor: one Sweeper, tasks in, measurement rows out."""

    def __init__(self, job: EvalJob, grid: list):
        self.sweeper, self.grid = Sweeper(job), grid

    def __call__(self, batch: dict) -> pd.DataFrame:
        rows = [row for index in batch["id"] for row in self.sweeper.measure(self.grid[int(index)])]
        return pd.DataFrame(rows)


def _run_grid(job: EvalJob, names: list[str], console: Console) -> pd.DataFrame:
    """Every task through a pool of actors, in the grid's order, with a bar in faces."""
    grid = tasks(job)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    measured = ray.data.range(len(grid), override_num_blocks=len(grid)).map_batches(
        _Measure,
        fn_constructor_args=(job, grid),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=job.workers),
        num_cpus=1,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("faces"),
    )
    frames = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        shown = bar.add_task("Evaluating", total=sum(task.count for task in grid))
        for batch in measured.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            frames.append(batch)
            bar.advance(shown, len(batch) / len(job.strengths))
    table = pa.concat_tables(frames, promote_options="default").to_pandas()
    return table.sort_values(["setting", "slider", "face", "strength"], ignore_index=True)


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
