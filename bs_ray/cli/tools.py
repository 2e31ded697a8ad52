"""`bs-ray demo`, `submit` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bs_ray.cli.shared import JobFile, console

app = typer.Typer()


@app.command(epilog="Example: bs-ray demo --quick --out /tmp/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and everything else.")] = Path(
        "demo-out"
    ),
    quick: Annotated[
        bool, typer.Option(help="One slider and fewer photos: about three minutes.")
    ] = False,
    photos: Annotated[
        str | None,
        typer.Option(
            help="Portraits to edit: a folder, local or s3://, of which the first four that show a "
            "face are taken; two that come with bs_ray where left out."
        ),
    ] = None,
) -> None:
    """Do everything once, offline: ingest, train, edit, serve, evaluate, write a report."""
    from bs_ray.demo import demo as run

    run(out, quick=quick, photos=photos, console=console)


@app.command(
    epilog="Example: bs-ray submit jobs/tiny/train-smile.yaml --address http://127.0.0.1:8265"
)
def submit(
    job: JobFile,
    address: Annotated[str, typer.Option(help="The Ray head's dashboard address.")],
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
) -> None:
    """Run a job file on a running Ray cluster through its Jobs API."""
    from bs_ray.submit import submit as run

    run(job, address, follow, console=console)


@app.command()
def doctor() -> None:
    """Check this machine: versions, memory, object store, GPU, the shipped base."""
    from bs_ray.doctor import doctor as run

    if not run(console):
        raise typer.Exit(1)
