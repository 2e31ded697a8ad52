"""`bs-ray evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bs_ray.cli.shared import JobFile, JsonFile, Overrides, console, load_job, write_json
from bs_ray.config import TableJob

app = typer.Typer()


@app.command(
    epilog="Example: bs-ray evaluate jobs/tiny/quick.yaml splits.text=16 --json figures.json"
)
def evaluate(
    job: JobFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Of a table: run nothing; print what its training will take."),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure sliders, or compare sliders, bases or edit methods at equal effect; make a table of
    methods, training what is missing."""
    loaded = load_job(job, overrides, "evaluate")
    if isinstance(loaded, TableJob):
        _table(loaded, plan, json_file)
        return
    if plan:
        raise ValueError("got --plan for an evaluate job; expected a table, which trains")

    from bs_ray.evaluate.run import evaluate as run

    figures = run(loaded, console=console)
    _print_figures(figures)
    console.print(f"Report: [bold]{loaded.output.rstrip('/')}/report.html[/]")
    write_json(json_file, figures)


def _table(job: TableJob, plan: bool, json_file: Path | None) -> None:
    from bs_ray.bench.table.outputs import terminal_tables, verdicts_of
    from bs_ray.bench.table.run import make_table, plan_table

    if plan:
        write_json(json_file, plan_table(job, None, console))
        return
    figures = make_table(job, console=console)
    for title, heads, rows in terminal_tables(job, figures):
        _print_table(title, heads, rows)
    for verdict in verdicts_of(figures):
        console.print(f"{verdict['row']}: {verdict['sentence']}", markup=False, highlight=False)
    console.print(f"Page: [bold]{job.output.rstrip('/')}/table.html[/]")
    write_json(json_file, figures)


def _print_table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_figures(figures: dict) -> None:
    from bs_ray.evaluate.tables import terminal_table

    for title, heads, rows in terminal_table(figures):
        _print_table(title, heads, rows)
    for its in figures.get("comparisons", {}).values():
        for verdict in its["verdicts"].values():
            console.print(verdict["sentence"], markup=False, highlight=False)
