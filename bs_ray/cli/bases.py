"""`bs-ray bases`: which bases are on this machine, what one is, and fetching one."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from bs_ray.cli.shared import console, report

app = typer.Typer(no_args_is_help=True, help="The models that sliders act on.")

Base = Annotated[
    str,
    typer.Argument(
        help="What a job's `base` may be: tiny, a diffusers folder, org/name, org/name@revision, "
        "s3://bucket/prefix, or a .safetensors file of SDXL."
    ),
]


@app.command("list")
def bases_list() -> None:
    """List the bases that are on this machine: embedded, in the hub's cache, fetched or
    converted."""
    from bs_ray.models.base import BaseNotFound
    from bs_ray.models.describe import described, here

    table = Table("base", "family", "precision", "size", "id")
    for base in here():
        try:
            found = described(base)
        except BaseNotFound:  # another pipeline, or a download that was interrupted
            continue
        table.add_row(base, *_summary(found))
    console.print(table)


@app.command("show", epilog="Example: bs-ray bases show /models/sdxl-base-1.0")
def bases_show(
    base: Base,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a base as every verb does, and print its family, parts, precision, size and id."""
    from bs_ray.models.describe import described

    _show(described(base), as_json)


@app.command("fetch", epilog="Example: bs-ray bases fetch stabilityai/stable-diffusion-xl-base-1.0")
def bases_fetch(base: Base) -> None:
    """Download what is used of a base, each network in one precision; what is here already stays.

    Jobs do the same by themselves, unless HF_HUB_OFFLINE is set. Of `org/name` this also looks for
    a newer commit, which jobs do not.
    """
    from bs_ray.models import EMBEDDED
    from bs_ray.models.describe import described
    from bs_ray.models.sources import hub, kind_of, split_hub

    if base not in EMBEDDED and kind_of(base) == "hub":
        hub.download(*split_hub(base))
    _show(described(base), as_json=False)


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    table = Table("part", "precision", "parameters", "size", "files")
    for name, part in found["parts"].items():
        files = part["files"]
        shown = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        table.add_row(name, part["dtype"], f"{part['parameters']:,}", _size(part["bytes"]), shown)
    console.print(table)
    family, dtype, size, identity = _summary(found)
    report(f"{found['base']}: {family}, {dtype}, {size}, id {identity}, in {found['folder']}")


def _summary(found: dict[str, Any]) -> tuple[str, str, str, str]:
    return found["family"], found["dtype"], _size(found["bytes"]), found["id"]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
