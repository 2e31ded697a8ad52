"""What an evaluation leaves below its output."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from bs_ray.config import EvalJob
from bs_ray.evaluate.bases import Sheet
from bs_ray.evaluate.parts import to_parquet
from bs_ray.evaluate.report import render_report, report_plots
from bs_ray.evaluate.strips import as_file
from bs_ray.evaluate.tables import tables_of, to_csv, to_latex, to_markdown
from bs_ray.storage import Store


def write_outputs(
    job: EvalJob, figures: dict, table: pd.DataFrame, sheets: Sequence[Sheet] = ()
) -> None:
    """Below `job.output`: report.html, which needs no other file; metrics.json, all figures;
    metrics.parquet, a row for each item and strength; tables.md, tables.tex and tables.csv;
    plots/*, the plots and the base's sheets. A comparison of methods also writes methods.json, the
    older name of metrics.json.
    """
    output = Store(job.output)
    tables = tables_of(figures)
    output.write("metrics.parquet", to_parquet(table))
    output.write("tables.md", to_markdown(tables).encode())
    output.write("tables.tex", to_latex(tables).encode())
    output.write("tables.csv", to_csv(tables).encode())
    for name, png in report_plots(job, figures, table).items():
        output.write(f"plots/{name}", png)
    for sheet in sheets:
        data, media_type = as_file(sheet.image)
        output.write(f"plots/base-{sheet.name}.{media_type.partition('/')[2]}", data)
    written = (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode()
    for name in ("metrics.json", "methods.json") if job.methods else ("metrics.json",):
        output.write(name, written)
    output.write("report.html", render_report(job, figures, table, sheets).encode())
