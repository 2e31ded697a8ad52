"""`bs-ray evaluate`."""

from __future__ import annotations

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bs_ray.cli.shared import JobFile, JsonFile, Overrides, console, load_job, write_json

app = typer.Typer()


@app.command(
    epilog="Example: bs-ray evaluate jobs/tiny/quick.yaml splits.text=16 --json figures.json"
)
def evaluate(job: JobFile, overrides: Overrides = None, json_file: JsonFile = None) -> None:
    """Measure sliders, or compare sliders, bases or edit methods at equal effect."""
    loaded = load_job(job, overrides, "evaluate")

    from bs_ray.evaluate.run import evaluate as run

    figures = run(loaded, console=console)
    _print_figures(figures)
    console.print(f"Report: [bold]{loaded.output.rstrip('/')}/report.html[/]")
    write_json(json_file, figures)


def _print_figures(figures: dict) -> None:
    from bs_ray.evaluate.tables import terminal_table

    for title, heads, rows in terminal_table(figures):
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for head in heads:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for its in figures.get("comparisons", {}).values():
        for verdict in its["verdicts"].values():
            console.print(verdict["sentence"], markup=False, highlight=False)
