"""A checkpoint: named engine states in a directory, whole or not at all.

    <name>.safetensors ...   one per engine
    state.json               the progress, and the sha256 of every other file

Engine states are portable, so a checkpoint depends neither on the engine nor on the number of
workers. On storage a run's checkpoints lie side by side, named by their step:
`step-000050-1a2b3c4d`. An upload may break off anywhere, so a checkpoint counts only where its
hashes show that it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load, save

from bs_ray import __version__
from bs_ray.config import TrainJob, flat_settings, job_hash
from bs_ray.storage import Store
from bs_ray.train.engines import State

_STATE = "state.json"
_PREFIX = "step-"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued; the message says got, expected and what to do."""


class IncompleteCheckpoint(CheckpointError):
    """A checkpoint that was not written or uploaded to its end, or altered since."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them, restarts included."""
    scales: dict[str, float] = field(default_factory=dict)
    """State of the LossNormaliser; checkpoints have always called it so."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The numbers of some steps, for the card."""
    gaps: dict[str, float] = field(default_factory=dict)
    """The teacher's gap by slider, measured before step 0."""
    plateau: dict[str, float] = field(default_factory=dict)
    """State of the early stop."""
    stopped: bool = False
    """Whether the run ended early, on a plateau."""


def write(folder: Path, job: TrainJob, progress: Progress, states: Mapping[str, State]) -> None:
    """Make the checkpoint `folder`, which must not exist, in one atomic step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        files = {f"{name}.safetensors": save(state) for name, state in states.items()}
        for name, data in files.items():
            (draft / name).write_bytes(data)
        state = {
            "job": job.model_dump(),
            "progress": asdict(progress),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "versions": {"bs_ray": __version__, "torch": str(torch.__version__)},
        }
        (draft / _STATE).write_text(json.dumps(state, indent=1))
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def read(folder: Path, job: TrainJob) -> tuple[Progress, dict[str, State]]:
    """Progress and engine states by name.

    Raises IncompleteCheckpoint for a half-written or altered checkpoint, and CheckpointError for
    one of another job, naming the settings that differ.
    """
    state, files = _verified(folder)
    _check_job(folder, TrainJob.model_validate(state["job"]), job)
    states = {name.removesuffix(".safetensors"): load(data) for name, data in files.items()}
    return Progress(**state["progress"]), states


def _verified(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(state.json, the other files), each as it was written. Raises IncompleteCheckpoint."""
    try:
        state = json.loads((folder / _STATE).read_text())
        files = {name: (folder / name).read_bytes() for name in state["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(folder, f"{type(error).__name__}: {error}") from None
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != state["files"][name]:
            raise _incomplete(folder, f"{name} is not what was written")
    return state, files


def _incomplete(folder: Path, detail: str) -> IncompleteCheckpoint:
    return IncompleteCheckpoint(
        f"checkpoint {folder.name}: got an incomplete one ({detail}); expected what a run wrote. "
        "Delete it, and the run continues from the one before"
    )


def _check_job(folder: Path, saved: TrainJob, job: TrainJob) -> None:
    if job_hash(saved) == job_hash(job):
        return
    old, new = flat_settings(saved.model_dump()), flat_settings(job.model_dump())
    changed = [f"{key} {new[key]!r} (was {old[key]!r})" for key in new if new[key] != old[key]]
    raise CheckpointError(
        f"checkpoint {folder.name}: got a job with {', '.join(changed)}; expected the job that the "
        "checkpoint is of. Give the changed job another name, or set these back to resume"
    )


# --- on storage --------------------------------------------------------------------------------
def new_name(folder: Path) -> str:
    """A name on storage for the checkpoint in `folder`, different from that of any other upload."""
    step = json.loads((folder / _STATE).read_text())["progress"]["step"]
    return f"{_PREFIX}{step:06d}-{uuid4().hex[:8]}"


def whole(run: Store, report: Callable[[str], None]) -> Iterator[str]:
    """Names of a run's whole checkpoints, the newest first; each is downloaded and verified.

    report(message) is called for each checkpoint that is not whole.
    """
    for name in names(run):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _verified(download(run, name, Path(scratch)))
            except IncompleteCheckpoint as error:
                report(str(error).partition(";")[0])
                continue
        yield name


def names(run: Store) -> list[str]:
    """Names of a run's checkpoints, whole or not, the newest first."""
    return sorted({entry.key.partition("/")[0] for entry in run.list(_PREFIX)}, reverse=True)


def download(run: Store, name: str, into: Path) -> Path:
    """Copy one checkpoint, or what there is of it, to a new folder in `into`."""
    folder = into / name
    folder.mkdir()
    for entry in run.list(f"{name}/"):
        (folder / Path(entry.key).name).write_bytes(run.read(entry.key))
    return folder


@contextmanager
def downloaded(run: Store, name: str | None) -> Iterator[Path | None]:
    """Within, the folder of the downloaded checkpoint; None for None."""
    if name is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield download(run, name, Path(scratch))


def delete_older(run: Store, than: str) -> None:
    """Delete the checkpoints that are older than this one."""
    for name in names(run):
        if name < than:
            for entry in run.list(f"{name}/"):
                run.delete(entry.key)
