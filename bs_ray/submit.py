"""`bs-ray submit`: run a job file on a Ray cluster, through Ray's Jobs API, and follow its log.

The cluster needs bs_ray (cluster/Dockerfile) and its own access to storage; only the job file is
sent. Where the cluster wants a token, as it should, Ray finds it in RAY_AUTH_TOKEN or
RAY_AUTH_TOKEN_PATH with RAY_AUTH_MODE=token.
"""

import asyncio
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from bs_ray.config.load import KINDS


class SubmitError(RuntimeError):
    """The cluster did not accept the job, or the job failed there."""


def submit(
    job_path: Path,
    address: str,
    follow: bool = True,
    verb: str | None = None,
    console: Console | None = None,
    *,
    entrypoint_prefix: Sequence[str] = ("python", "-m", "bs_ray"),
) -> str:
    """Run `bs-ray <verb> <job>` on the cluster at `address`, e.g. http://127.0.0.1:8265.

    verb: by default the file's `kind`. follow: print the job's log until its end, and return
    "SUCCEEDED"; otherwise the status right after submission is returned. Raises ValueError for a
    job file that cannot be sent, and SubmitError for an unreachable cluster, a refused token or a
    job that fails.
    """
    console = console or Console()
    verb = verb or job_kind(job_path)
    if verb not in KINDS:
        raise ValueError(f"{job_path}: got verb {verb!r}, expected one of {', '.join(KINDS)}.")
    client = _connect(address)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(job_path, folder)  # without its neighbours, which may be anything
        job_id = client.submit_job(
            entrypoint=shlex.join([*entrypoint_prefix, verb, job_path.name]),
            runtime_env={"working_dir": folder},
            metadata={"job_file": job_path.name, "verb": verb},
        )
    console.print(f"{job_path.name}: submitted to {address} as [bold]{job_id}[/]")
    return _follow(client, job_id, console) if follow else str(client.get_job_status(job_id))


def job_kind(job_path: Path) -> str:
    """The job file's top-level `kind`, which is the verb that runs it. Raises ValueError."""
    try:
        content = yaml.safe_load(job_path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{job_path} cannot be read as YAML: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in KINDS:
        raise ValueError(
            f"{job_path}: got kind {kind!r}, expected `kind:` with one of {', '.join(KINDS)}. "
            "Add it at the top of the file, or name the verb."
        )
    return str(kind)


def _connect(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise SubmitError(
            f"{address} refused the token ({_first_line(error)}). Expected RAY_AUTH_MODE=token and "
            "the cluster's token in RAY_AUTH_TOKEN or in the file RAY_AUTH_TOKEN_PATH."
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SubmitError(
            f"No Ray Jobs API at {address} ({_first_line(error)}). Expected the head node's "
            "dashboard, e.g. http://127.0.0.1:8265 (kubectl port-forward service/<head> 8265)."
        ) from error


def _follow(client: Any, job_id: str, console: Console) -> str:
    from ray.job_submission import JobStatus

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            console.out(text, end="", highlight=False)

    asyncio.run(tail())
    info = client.get_job_info(job_id)
    if info.status != JobStatus.SUCCEEDED:
        raise SubmitError(f"Job {job_id} ended as {info.status.value}: {info.message}")
    return str(info.status.value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
