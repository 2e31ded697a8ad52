"""Compare edit methods: match their scales, measure, time; one table and a page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bs_ray.config import EvalJob, job_hash
from bs_ray.evaluate.compare import SHARES, Comparer, Part, match, matching_parts, measuring_parts
from bs_ray.evaluate.metrics import drift_of_others, is_monotone
from bs_ray.evaluate.report import render_methods_report
from bs_ray.evaluate.run import check, measured, to_parquet, with_places
from bs_ray.ray_session import ray_session
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store

SHOWN = {
    "drift": "{:.4f}",
    "identity": "{:.3f}",
    "perceptual_64": "{:.3f}",
    "drift_at_zero": "{:.4f}",
}
"""The measures that fit a terminal, and their format; the page and methods.json have all."""


def compare(job: EvalJob, *, console: Console | None = None) -> dict:
    """Measure every method of the job; the figures, as written to methods.json.

    Writes report.html, methods.json and methods.parquet below `job.output`, a folder or s3://. The
    same command goes on after an interruption. Raises what `evaluate` raises.
    """
    console = console or Console()
    names = check(job)
    job = with_places(job)
    output = Store(job.output)
    parts = output.join(f"parts-{_digest(job)}")
    with ray_session(num_cpus=max(4, job.workers + 1)):
        grid = pd.concat(_resumed(job, matching_parts(job), parts, console))
        matched = _matched(job, grid, names)
        scales = {key: scale for key, (scale, _) in matched.items()}
        table = pd.concat(_resumed(job, measuring_parts(job, scales), parts, console))
    costs = Comparer(job).costs(lambda line: console.print(line, highlight=False))
    figures = {
        "name": job.name,
        "goals": job.effects,
        "matched": [
            {
                "method": m,
                "setting": s,
                "slider": r,
                "scale": scale,
                "effect": effect,
                "reached": effect >= job.effects[r],
            }
            for (m, s, r), (scale, effect) in matched.items()
        ],
        "costs": costs,
        "methods": summarise(job, table, names),
    }
    output.write("methods.parquet", to_parquet(table))
    output.write("methods.json", (json.dumps(figures, indent=2) + "\n").encode())
    output.write("report.html", render_methods_report(job, figures, table).encode())
    return figures


def methods_table(figures: dict) -> Table:
    """The one table: a row for each method and split, with means over sliders."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("method", "photos"):
        table.add_column(name)
    for name in ("drift", "identity", "LPIPS", "drift at 0", "evals", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in figures["methods"]:
        cost = figures["costs"][row["method"]]
        table.add_row(
            row["method"],
            row["setting"],
            *(form.format(row[n]) for n, form in SHOWN.items()),
            f"{cost['evaluations']:.0f}",
            f"{cost['seconds']:.2f}",
        )
    return table


def summarise(job: EvalJob, table: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each method and split: means over faces and sliders.

    `spread`: by measure, the standard deviation over seeds. `sliders`: the same means by slider.
    """
    found = []
    for method in job.methods:
        for split in job.splits:
            rows = table[(table["method"] == method) & (table["setting"] == split)]
            cells = {
                (seed, slider): _figures(part, names.index(job.sliders[slider]))
                for (seed, slider), part in rows.groupby(["seed", "slider"])
            }
            frame = pd.DataFrame(cells).T
            seeds = frame.groupby(level=0).mean()
            by_slider = frame.groupby(level=1).mean()
            found.append(
                {
                    "method": method,
                    "setting": split,
                    "faces": rows["face"].nunique(),
                    "seeds": len(seeds),
                    **seeds.mean().to_dict(),
                    "spread": seeds.std(ddof=0).to_dict(),
                    "sliders": by_slider.T.to_dict(),
                }
            )
    return found


def _figures(rows: pd.DataFrame, own: int) -> dict[str, float]:
    """The figures of one slider and one seed; rows: every face at every place of SHARES."""
    rows = rows.sort_values(["face", "place"])
    count = len(SHARES)

    def grid(column: str) -> np.ndarray:
        values = np.stack(rows[column].to_list())
        return values.reshape(-1, count, *values.shape[1:])

    readings, zero = grid("readings"), SHARES.index(0.0)
    ends = [0, count - 1]
    away = readings - grid("photo_readings")  # an edit is compared with its photo
    return {
        "effect": float((readings[:, -1] - readings[:, 0])[:, own].mean()),
        "drift": float(np.mean([drift_of_others(away[:, end], own) for end in ends])),
        "identity": float(grid("identity")[:, ends].mean()),
        "perceptual_64": float(grid("perceptual_64")[:, ends].mean()),
        "perceptual_full": float(grid("perceptual_full")[:, ends].mean()),
        "monotone_share": float(is_monotone(readings[:, :, own]).mean()),
        "pixels_at_zero": float(grid("pixels")[:, zero].mean()),
        "drift_at_zero": float(np.abs(away[:, zero]).mean()),
    }


def _matched(
    job: EvalJob, grid: pd.DataFrame, names: Sequence[str]
) -> dict[tuple[str, str, str], tuple[float, float]]:
    """(method, split, slider) -> (scale, effect there)."""
    found = {}
    for (method, split, slider), rows in grid.groupby(["method", "setting", "slider"]):
        rows = rows.sort_values(["face", "place"])
        scales = tuple(sorted(rows["scale"].unique()))
        readings = np.stack(rows["readings"].to_list())[:, names.index(job.sliders[slider])]
        found[method, split, slider] = match(
            job.effects[slider], scales, readings.reshape(-1, len(scales))
        )
    return found


def _resumed(
    job: EvalJob, parts: Sequence[Part], kept: Store, console: Console
) -> Iterator[pd.DataFrame]:
    """Every part's rows: an earlier run's are read, the others are measured and kept."""
    missing = []
    for part in parts:
        key = f"{part.name}.parquet"
        if kept.exists(key):
            yield pd.read_parquet(BytesIO(kept.read(key)))
        else:
            missing.append(part)
    if not missing:
        return
    for rows in measured(job, Comparer, missing, console):
        for name, own in rows.groupby("part"):
            kept.write(f"{name}.parquet", to_parquet(own))
        yield rows


def _digest(job: EvalJob) -> str:
    """Names what decides the figures: the job, and which versions its sliders are."""
    versions = [Registry(job.registry).resolve(reference).reference for reference in job.sliders]
    return hashlib.sha256(f"{job_hash(job)} {versions}".encode()).hexdigest()[:8]
