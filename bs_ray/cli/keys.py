"""`bs-ray keys`: who may call a server."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from bs_ray.cli.shared import console

app = typer.Typer(no_args_is_help=True, help="Who may call a server.")


@app.command("add", epilog="Example: bs-ray keys add keys.yml team-a --per-minute 600")
def keys_add(
    file: Annotated[
        str, typer.Argument(help="Keys file, local or s3://; made where it is missing.")
    ],
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs and metrics.")],
    sliders: Annotated[
        str, typer.Option(help="Comma list of sliders that the key may use; may have wildcards.")
    ] = "*",
    per_minute: Annotated[
        float | None,
        typer.Option(help="Most requests a minute; no limit where left out.", min=0.01),
    ] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(help="First day on which the key is no longer valid.", formats=["%Y-%m-%d"]),
    ] = None,
) -> None:
    """Make an API key. It is printed once; the file keeps its hash. Servers read it within 30 s."""
    from bs_ray.serve.http.keys import add_key

    given = {
        "sliders": sliders.split(","),
        "requests_per_minute": per_minute,
        "expires": expires and expires.date(),
    }
    secret = add_key(file, name, **{k: v for k, v in given.items() if v is not None})
    console.print(f"Added {name} to {file}. Its key, which is not shown again:", highlight=False)
    print(secret)
