"""`bs-ray edit`."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

import typer

from bs_ray.cli.shared import JobFile, JsonFile, Overrides, console, load_job, write_json

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
