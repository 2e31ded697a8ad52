"""`bs-ray train`."""

from __future__ import annotations

from typing import Annotated

import typer

from bs_ray.cli.shared import JobFile, JsonFile, Overrides, console, load_job, write_json

app = typer.Typer()


@app.command(epilog="Example: bs-ray train jobs/tiny/train-smile.yaml steps=300")
def train(
    job: JobFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Run nothing; print what the job will take.")
    ] = False,
    gpu_memory_gb: Annotated[
        float | None,
        typer.Option(help="With --plan: fail where a worker needs more GiB.", min=0.01),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Train a slider and publish it. The same command resumes a stopped run."""
    from dataclasses import asdict

    loaded = load_job(job, overrides, "train")
    if plan:
        from bs_ray.train.planning.plan import plan as make_plan
        from bs_ray.train.planning.plan import show

        made = make_plan(loaded, gpu_memory_gb)
        show(made, console)
        write_json(json_file, asdict(made))
        return
    if gpu_memory_gb is not None:
        raise ValueError("got --gpu-memory-gb without --plan; expected both: a run reads no limit")
    from bs_ray.train.run import train as run

    result = run(loaded, console=console)
    write_json(json_file, asdict(result))
