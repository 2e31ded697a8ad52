"""A checkpoint: named engine states in a directory, whole or not at all.

    <name>.safetensors ...   one per engine
    state.json               the progress, and the sha256 of every other file; written last

Engine states are portable, so neither the engine nor the number of workers is part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from bs_ray import __version__
from bs_ray.config import TrainJob, job_hash
from bs_ray.train.engines import State

_STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued; the message says got, expected and what to do."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them, restarts included."""
    scales: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    """Numbers of some steps, for the card and the curves."""


def write(folder: Path, job: TrainJob, progress: Progress, states: Mapping[str, State]) -> None:
    """Make the checkpoint `folder`, which must not exist, in one step."""
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

    Raises CheckpointError for a half-written or altered checkpoint, and for one of another job,
    naming the settings that differ.
    """
    try:
        state = json.loads((folder / _STATE).read_text())
        files = {name: (folder / name).read_bytes() for name in state["files"]}
    except (OSError, ValueError, KeyError) as error:
        raise _half_written(folder, f"{type(error).__name__}: {error}") from None
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != state["files"][name]:
            raise _half_written(folder, f"{name} is not what was written")
    _check_job(folder, TrainJob.model_validate(state["job"]), job)
    states = {name.removesuffix(".safetensors"): load(data) for name, data in files.items()}
    return Progress(**state["progress"]), states


def _half_written(folder: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder.name}: got an incomplete one ({detail}); expected what a run wrote. "
        "Delete it, and the run continues from the one before"
    )


def _check_job(folder: Path, saved: TrainJob, job: TrainJob) -> None:
    if job_hash(saved) == job_hash(job):
        return
    old, new = _flat(saved.model_dump()), _flat(job.model_dump())
    changed = [f"{key} {new[key]!r} (was {old[key]!r})" for key in new if new[key] != old[key]]
    raise CheckpointError(
        f"checkpoint {folder.name}: got a job with {', '.join(changed)}; expected the job that the "
        "checkpoint is of. Give the changed job another name, or set these back to resume"
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
