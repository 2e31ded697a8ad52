"""`bs-ray ingest`: bring photos into storage."""

from __future__ import annotations

from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="Bring photos into storage.")


@app.command("lfw", epilog="Example: bs-ray ingest lfw lfw.tgz s3://photos/lfw")
def ingest_lfw(
    source: Annotated[str, typer.Argument(help="lfw.tgz, or the extracted folder.")],
    destination: Annotated[str, typer.Argument(help="Prefix for the shards, local or s3://.")],
    format: Annotated[
        str, typer.Option(help="parquet, or webdataset: tars of a .jpg and a .json per photo.")
    ] = "parquet",
    shard_images: Annotated[int, typer.Option(help="Photos in a shard.", min=1)] = 1000,
) -> None:
    """Pack Labeled Faces in the Wild into shards for training. The same command goes on."""
    from bs_ray.datasets.lfw import ingest_lfw as run

    console.print(str(run(source, destination, shard_images, format)))


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
