"""`bs-ray keys`: who may ask a server."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="Who may ask a server for edits.")


@app.command("add", epilog="Example: bs-ray keys add keys.yaml team-a --per-minute 600")
def keys_add(
    file: Annotated[str, typer.Argument(help="Keys file, local or s3://; made if need be.")],
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs and metrics.")],
    sliders: Annotated[
        str, typer.Option(help="Comma list of sliders that it may use; globs are fine.")
    ] = "*",
    per_minute: Annotated[
        float | None, typer.Option(help="Most requests a minute; no limit if left out.", min=0.01)
    ] = None,
    expires: Annotated[
        datetime | None, typer.Option(help="First day it is no longer good.", formats=["%Y-%m-%d"])
    ] = None,
) -> None:
    """Make an API key: shown once here, kept as its hash there. Servers learn of it within 30 s."""
    from bs_ray.serve.http.keys import add_key

    given = {
        "sliders": sliders.split(","),
        "requests_per_minute": per_minute,
        "expires": expires and expires.date(),
    }
    secret = add_key(file, name, **{k: v for k, v in given.items() if v is not None})
    console.print(f"Added {name} to {file}. Its key, which is not shown again:", highlight=False)
    print(secret)
