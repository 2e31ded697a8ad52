"""`bs-ray tiny`: train the embedded bases again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="Make the embedded bases again.")


Smiles = Annotated[Path | None, typer.Option(help="CSV of file,smile (0 or 1) for LFW's photos.")]


@app.command(
    "build",
    epilog="Example: bs-ray tiny build --world photos --faces lfw-deepfunneled.tgz "
    "--faces utkface.tar --smiles lfw-smile.csv --out my-base",
)
def tiny_build(
    world: Annotated[
        str,
        typer.Option(help="drawn: tiny and tiny-flow, of drawn faces. photos: tiny-photo."),
    ] = "drawn",
    faces: Annotated[
        list[Path] | None,
        typer.Option(
            help="For photos: LFW (deep-funneled) and UTKFace, archives or extracted folders; "
            "give it twice. They are packed into the work folder, once."
        ),
    ] = None,
    smiles: Smiles = None,
    out: Annotated[Path, typer.Option(help="Folder of the finished base.")] = Path("tiny-base"),
    work: Annotated[
        Path, typer.Option(help="Folder of pictures, checkpoints and sample sheets.")
    ] = Path("tiny-work"),
    stages: Annotated[
        str | None,
        typer.Option(help="Comma list of stages, such as vae,unet or photo-vae; all by default."),
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
    """Train embedded bases from nothing. The same command goes on where it stopped.

    tiny and tiny-flow take two and a half hours on 2 cores. tiny-photo takes a GPU for each worker
    where Ray has as many; packing its photos needs dlib, and 15 minutes.
    """
    from bs_ray.tiny.build import build

    build(
        out,
        work,
        world=world,
        faces=faces or (),
        smiles=smiles,
        stages=stages,
        workers=workers,
        threads=threads,
        share=share,
        console=console,
    )


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
    smiles: Smiles = None,
) -> None:
    """Crop, label and pack photos of faces for the recipe of tiny-photo (needs dlib; 15 minutes).

    tiny build does so by itself. Packed photos train where there is no Ray:
    python -m bs_ray.tiny.photo.train --pack tiny-pack --out my-base --work tiny-work
    """
    from bs_ray.tiny.photo.pack import ensure_pack

    ensure_pack(faces, smiles, out, console)
