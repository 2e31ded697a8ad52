"""`bs-ray edit` and `bs-ray edit-one`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from bs_ray.cli.shared import JobFile, JsonFile, Overrides, console, load_job, report, write_json

app = typer.Typer()


@app.command(epilog="Example: bs-ray edit jobs/tiny/edit-wild.yaml input=s3://photos/2024 --plan")
def edit(
    job: JobFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print what there is to do and how long it takes; write nothing."
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first so many photos (the job's `limit`).")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Take so many photos at random (the job's `sample`).")
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="INTERVAL", help="Look for news again and again, such as every 15m, 1h or 1d."
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="With --watch: how many times; else until SIGTERM or Ctrl-C."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics while it runs.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Edit a bucket or folder of photos. The same command resumes a stopped job, and edits what is
    new or changed in the input of a finished one."""
    from dataclasses import asdict

    taken = {"limit": limit, "sample": sample}
    given = [f"{name}={count}" for name, count in taken.items() if count is not None]
    every_s = _seconds(watch) if watch else None
    if rounds and not every_s:
        raise ValueError("got --rounds alone; expected --watch INTERVAL with it")
    loaded = load_job(job, [*(overrides or []), *given], "edit")
    from bs_ray.batch.estimate import estimate, estimate_table
    from bs_ray.batch.lease import JobTakenError
    from bs_ray.batch.run import edit as run
    from bs_ray.batch.watch import watch as repeat

    if plan:
        found = estimate(loaded, console)
        console.print(estimate_table(found))
        write_json(json_file, asdict(found))
        return
    once = partial(run, loaded, console=console, metrics_port=metrics_port)
    try:
        done = repeat(once, every_s, rounds, console) if every_s else once()
    except JobTakenError as taken_by:
        console.print(f"{loaded.name}: {taken_by}", soft_wrap=True)
        return
    write_json(json_file, asdict(done) if done else {})


def _seconds(interval: str) -> float:
    """The seconds of 90s, 15m, 1h or 1d. Raises ValueError."""
    found = re.fullmatch(r"(\d+)([smhd])", interval)
    if not found or not int(found[1]):
        raise ValueError(f"--watch: got {interval!r}; expected a number with s, m, h or d")
    return float(int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]])


@app.command(
    "edit-one",
    epilog="Example: bs-ray edit-one photo.jpg --slider chubby=1 --slider smile=1.5 --sweep",
)
def edit_one(
    photo: Annotated[Path, typer.Argument(help="A photo: JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC.")],
    slider: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=STRENGTH, where NAME is name, name@version or a file. Repeat to combine."
        ),
    ] = None,
    words: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="A slider without training: the prompts that it moves towards and away from, such "
            'as "person, smiling" "person, frowning".',
            metavar="POSITIVE NEGATIVE",
        ),
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Of --words; 1 by default.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="What --words act on; what both prompts have in common by default."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; beside the photo where left out.")
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(help="Write a strip instead: each slider from minus to plus its strength."),
    ] = False,
    compose: Annotated[
        bool,
        typer.Option(help="Write a strip instead: each picture has one slider more than the last."),
    ] = False,
    registry: Annotated[str, typer.Option(help="Where sliders are looked up.")] = "sliders",
    base: Annotated[
        str, typer.Option(help="`tiny`, a diffusers folder, a hub id, s3:// or a .safetensors.")
    ] = "tiny",
    other_bases: Annotated[
        str, typer.Option(help="Sliders of another base: refuse, warn or allow, as in a job.")
    ] = "warn",
    preset: Annotated[str, typer.Option(help="fast or high.")] = "fast",
    method: Annotated[str, typer.Option(help="How to edit, as editor.method.")] = "displacement",
    region: Annotated[
        str | None,
        typer.Option(help="photo, face or boxes, as editor.region; boxes where --box is given."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="LEFT,TOP,RIGHT,BOTTOM in pixels: edit here. Repeat for several."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes the noise, with the photo's content.")] = 0,
) -> None:
    """Edit one photo without a cluster; write it again, or write a strip of edits as PNG."""
    from bs_ray.config import editor_settings
    from bs_ray.config.base import OtherBases
    from bs_ray.editing.single_photo import OnePhoto, boxes_of, strengths_of, words_of

    if other_bases not in get_args(OtherBases):
        raise ValueError(f"--other-bases: got {other_bases!r}; expected refuse, warn or allow")
    if sweep and compose:
        raise ValueError("got --sweep and --compose; expected one of them")
    if not slider and not words:
        raise ValueError("got neither --slider nor --words; expected what to change")
    if not words and (strength is not None or target is not None):
        raise ValueError("got --strength or --target without --words; expected them together")
    region = region or ("boxes" if box else "photo")
    settings = editor_settings({"preset": preset, "method": method, "region": region})
    places = {"base": base, "registry": registry}
    one = OnePhoto(
        photo,
        strengths_of(slider or []),
        settings,
        **places,
        seed=seed,
        boxes=boxes_of(box or []),
        other_bases=cast(OtherBases, other_bases),
        words=[words_of(words, 1.0 if strength is None else strength, target)] if words else [],
    )
    if sweep or compose:
        kind = "sweep" if sweep else "compose"
        out = out or photo.with_name(f"{photo.stem}-{kind}.png")
        (one.sweep() if sweep else one.compose()).save(out)
        for used in one.editor.sliders.values():
            if used.card.elsewhere:
                report(used.card.elsewhere)
    else:
        out = out or photo.with_name(f"{photo.stem}-edited{photo.suffix}")
        data, notes = one.edit()
        out.write_bytes(data)
        for note in notes:
            report(note)
    report(f"wrote {out}")
