"""What the commands share: the console, job files with overrides, figures as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()

JobFile = Annotated[Path, typer.Argument(help="A job file, see jobs/.", metavar="JOB.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change, e.g. steps=400 'prompts.target=a cat'.",
        metavar="[KEY=VALUE]...",
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.")
]


def load_job(path: Path, overrides: list[str] | None, kind: str) -> Any:
    """The job in a file; for training also a file of Concept Sliders'. Raises JobError."""
    from bs_ray.config import concept_sliders, load

    if kind == "train" and concept_sliders.is_foreign(path):
        job, notes = concept_sliders.read(path, overrides)
        console.print(f"{path} is a file of Concept Sliders':", soft_wrap=True, markup=False)
        for note in notes:
            console.print(f"  {note}", soft_wrap=True, markup=False)
        return job
    return load(path, overrides, kind)


def write_json(path: Path | None, figures: dict) -> None:
    """Write the figures to a file, where the caller wants one."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


def report(line: str) -> None:
    """Print a line of progress as it is: a long one is not broken, brackets are no markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
