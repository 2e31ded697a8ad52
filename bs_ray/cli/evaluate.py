"""`bs-ray evaluate`."""

from __future__ import annotations

import typer
from rich.table import Table

from bs_ray.cli.shared import JobFile, JsonFile, Overrides, console, load_job, write_json

app = typer.Typer()


@app.command(
    epilog="Example: bs-ray evaluate jobs/tiny/quick.yaml splits.text=16 --json figures.json"
)
def evaluate(job: JobFile, overrides: Overrides = None, json_file: JsonFile = None) -> None:
    """Measure sliders, or edit methods at equal effect (a job with `methods`), into report.html."""
    loaded = load_job(job, overrides, "evaluate")
    if loaded.methods:
        from bs_ray.evaluate.methods import compare, methods_table

        figures = compare(loaded, console=console)
        console.print(methods_table(figures))
    else:
        from bs_ray.evaluate.run import evaluate as run

        figures = run(loaded, console=console)
        _print_figures(figures)
    console.print(f"Report: [bold]{loaded.output.rstrip('/')}/report.html[/]")
    write_json(json_file, figures)


def _print_figures(figures: dict) -> None:
    table = Table("slider", "split", "N", "effect", "drift", "monotone", "identity", "zero exact")
    for slider, splits in figures["sliders"].items():
        for split, found in splits.items():
            table.add_row(
                slider,
                split,
                str(found["faces"]),
                f"{found['effect']:+.3f}",
                f"{found['drift_other']:.3f}",
                f"{found['monotone_share']:.1%}",
                f"{found['identity']:.3f}",
                "yes" if found["zero_exact"] else "no",
            )
    console.print(table)
