"""`bs-ray ingest`: bring photos into storage."""

from __future__ import annotations

from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="Bring photos into storage.")


@app.command("lfw", hidden=True)  # what it was called when it took nothing else
@app.command("photos", epilog="Example: bs-ray ingest photos portraits.zip s3://photos/portraits")
def ingest_photos(
    source: Annotated[
        str, typer.Argument(help="A folder of pictures, local or s3://, or a .zip, .tar or .tgz.")
    ],
    destination: Annotated[str, typer.Argument(help="Prefix for the shards, local or s3://.")],
    format: Annotated[
        str, typer.Option(help="parquet, or webdataset: tars of a .jpg and a .json per photo.")
    ] = "parquet",
    shard_images: Annotated[int, typer.Option(help="Photos in a shard.", min=1)] = 1000,
    identities: Annotated[
        str,
        typer.Option(
            help="Who is on a photo: auto (names like LFW's, Ada_L/Ada_L_0001.jpg), folder, none."
        ),
    ] = "auto",
) -> None:
    """Pack pictures into shards for training. The same command goes on."""
    from typing import get_args

    from bs_ray.datasets.ingest import ingest_photos as run
    from bs_ray.datasets.pictures import Identities

    if identities not in get_args(Identities):
        expected = ", ".join(get_args(Identities))
        raise ValueError(f"--identities: got {identities!r}; expected one of {expected}")
    console.print(
        str(run(source, destination, shard_images, format, identities)),  # type: ignore[arg-type]
        markup=False,
        soft_wrap=True,
    )


@app.command("tiny-world", epilog="Example: bs-ray ingest tiny-world data --photos 500")
def ingest_tiny_world(
    destination: Annotated[str, typer.Argument(help="Prefix for wild/ and lfw/, local or s3://.")],
    photos: Annotated[int, typer.Option(help="In-the-wild photos to make.", min=1)] = 500,
    people: Annotated[
        int, typer.Option(help="People of the LFW-layout training set.", min=1)
    ] = 200,
    broken: Annotated[int, typer.Option(help="Broken files among the photos.", min=0)] = 10,
    seed: int = 0,
) -> None:
    """Make photos of the tiny world to try everything with, some of them broken."""
    from bs_ray.tiny.drawn import ingest_tiny_world as run

    console.print(str(run(destination, photos=photos, people=people, broken=broken, seed=seed)))
