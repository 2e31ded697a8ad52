"""`bs-ray serve`."""

from __future__ import annotations

import typer

from bs_ray.cli.shared import JobFile, Overrides, console, load_job

app = typer.Typer()


@app.command(epilog="Example: bs-ray serve jobs/tiny/serve.yaml port=9000")
def serve(job: JobFile, overrides: Overrides = None) -> None:
    """Serve sliders over HTTP until Ctrl-C."""
    loaded = load_job(job, overrides, "serve")
    from bs_ray.serve.deploy import serve_job

    serve_job(loaded, console=console)
