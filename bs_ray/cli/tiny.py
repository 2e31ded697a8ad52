"""`bs-ray tiny`: train the embedded base again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="The embedded base: a small SDXL of 64-pixel faces.")


@app.command(
    "build", epilog="Example: bs-ray tiny build --out my-base --stages reader,text,vae,unet"
)
def tiny_build(
    out: Annotated[Path, typer.Option(help="Folder of the finished base.")] = Path("tiny-base"),
    work: Annotated[
        Path, typer.Option(help="Folder of pictures, checkpoints and sample sheets.")
    ] = Path("tiny-work"),
    stages: Annotated[
        str | None, typer.Option(help="Comma list of stages; all by default.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Ray Train workers (gradients are averaged).", min=1)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per worker; all cores by default.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of the recipe's steps, for a quick try.", min=0.001, max=1)
    ] = 1.0,
) -> None:
    """Train the tiny base from nothing (two and a half hours on 2 cores). It resumes."""
    from bs_ray.tiny.build import build

    build(out, work, stages=stages, workers=workers, threads=threads, share=share, console=console)
