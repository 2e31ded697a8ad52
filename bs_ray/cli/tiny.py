"""`bs-ray tiny`: train the embedded bases again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="Make the embedded bases again.")


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
    """Train tiny and tiny-flow from nothing (two and a half hours on 2 cores). It resumes."""
    from bs_ray.tiny.build import build

    build(out, work, stages=stages, workers=workers, threads=threads, share=share, console=console)


@app.command(
    "pack",
    epilog="Example: bs-ray tiny pack lfw-deepfunneled.tgz utkface.tar --smiles lfw-smile.csv",
)
def tiny_pack(
    faces: Annotated[
        list[Path],
        typer.Argument(help="LFW (deep-funneled) and UTKFace: archives or extracted folders."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the packed photos.")] = Path("tiny-pack"),
    smiles: Annotated[
        Path | None, typer.Option(help="CSV of file,smile (0 or 1) for LFW's photos.")
    ] = None,
) -> None:
    """Crop, label and pack photos of faces for the recipe of tiny-photo (needs dlib; 15 minutes).

    Then: python -m bs_ray.tiny.photo.train --pack tiny-pack --out my-base --work tiny-work
    """
    from bs_ray.tiny.photo.pack import pack

    for path in pack(faces, smiles, out):
        console.print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")
