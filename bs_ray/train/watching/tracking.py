"""Where a run's curves and previews go: TensorBoard files, MLflow, Weights & Biases, PNG files.

Tracking never stops training: a tracker that fails is reported once and not used again.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from bs_ray.config import TrainJob
from bs_ray.storage import Store


class Tracker(Protocol):
    """Takes what a run shows. A step is given as the number of steps done, from 1 on."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of one step, by name."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """One RGB picture of one step, such as a slider's preview."""

    def flush(self) -> None:
        """Store what came so far; called at every checkpoint."""

    def close(self) -> None:
        """Store what came so far and end."""


def check_tracking(job: TrainJob) -> None:
    """Raise ValueError where the job asks for a tracker whose package is not installed."""
    if job.tracking.mlflow:
        _package("mlflow", job.tracking.mlflow)
    if job.tracking.wandb:
        _package("wandb", job.tracking.wandb)


def open_trackers(job: TrainJob, run_name: str, step: int = 0) -> Tracker:
    """All trackers that the job asks for, as one. Call it on one worker.

    run_name: the folder below job.runs, which is the same after a restart. step: steps done so far;
    what earlier attempts logged beyond it is replaced. Raises ValueError where a package is
    missing.
    """
    check_tracking(job)
    run = Store(job.runs).join(run_name)
    makers: dict[str, Callable[[], Tracker]] = {"previews": lambda: Pictures(run.join("previews"))}
    if job.tracking.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(run.join("tensorboard"), step)
    if (uri := job.tracking.mlflow) is not None:
        makers["mlflow"] = lambda: MLflow(uri, job.name, run_name)
    if (project := job.tracking.wandb) is not None:
        makers["wandb"] = lambda: WandB(project, run_name)
    return _Independent(makers)


class _Independent:
    """Several trackers, each of which may fail without consequences for the others and the run."""

    def __init__(self, makers: dict[str, Callable[[], Tracker]]):
        self._open: dict[str, Tracker] = {}
        for name, make in makers.items():
            self._try(name, lambda name=name, make=make: self._open.update({name: make()}))  # type: ignore[misc]

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, numbers))

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._each(lambda tracker: tracker.picture(step, name, image))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: work(tracker))  # type: ignore[misc]

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever a client library raises
            self._open.pop(name, None)
            warnings.warn(
                f"tracking: {name} failed ({type(error).__name__}: {error}); training goes on "
                "without it",
                stacklevel=4,
            )


class Pictures:
    """Previews as files: step-000100-smile.png."""

    def __init__(self, store: Store):
        self.store = store

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers are for other trackers."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        self.store.write(f"step-{step:06d}-{name}.png", stream.getvalue())

    def flush(self) -> None:
        """Files are written at once."""

    def close(self) -> None:
        """Nothing is open."""


_EVENTS_WAIT_S = 10.0


class TensorBoard:
    """Event files, written to a scratch folder and copied to storage at every flush.

    Each attempt of a run has its own file, which begins by purging the steps that are done again.
    """

    def __init__(self, store: Store, step: int):
        from tensorboardX import SummaryWriter

        self.store = store
        self._scratch = tempfile.TemporaryDirectory(prefix="bs-ray-events-")
        self._writer = SummaryWriter(
            self._scratch.name,
            purge_step=step + 1 if step else None,
            filename_suffix=f".{step:06d}-{uuid4().hex[:8]}",
        )
        self._events = 2 if step else 1  # the file's version, and the purge

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._events += len(numbers)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._events += 1
        self._writer.add_image(f"preview/{name}", np.asarray(image), step, dataformats="HWC")

    def flush(self) -> None:
        # The writer's own thread takes events from a queue, and flush() does not wait for it.
        deadline_s = time.monotonic() + _EVENTS_WAIT_S
        self._writer.flush()
        while self._in_file() < self._events and time.monotonic() < deadline_s:
            time.sleep(0.01)
            self._writer.flush()
        self._copy()

    def close(self) -> None:
        self._writer.close()
        self._copy()
        self._scratch.cleanup()

    def _in_file(self) -> int:
        """How many whole records the file has: length (8 bytes), its CRC, the data, their CRC."""
        count = 0
        for file in Path(self._scratch.name).iterdir():
            data, at = file.read_bytes(), 0
            while at + 8 <= len(data):
                at += 8 + 4 + int.from_bytes(data[at : at + 8], "little") + 4
                count += at <= len(data)
        return count

    def _copy(self) -> None:
        for file in sorted(Path(self._scratch.name).iterdir()):
            self.store.write(file.name, file.read_bytes())


class MLflow:
    """A run of an MLflow server or folder, which continues an earlier attempt's run of the same
    name."""

    def __init__(self, uri: str, experiment: str, run_name: str):
        # With its default of seven retries training would wait for minutes for a missing server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Without this MLflow 3 refuses a plain folder.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow = _package("mlflow", uri)
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([number], f"attributes.run_name = '{run_name}'")
        self._run = (runs or [self._client.create_run(number, run_name=run_name)])[0].info.run_id
        self._last: dict[str, int] = {}

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if step > self._last_step(name):
                self._client.log_metric(self._run, name, value, step=step)

    def _last_step(self, name: str) -> int:
        """The last step that an earlier attempt logged; a resumed run repeats some numbers."""
        if name not in self._last:
            history = self._client.get_metric_history(self._run, name)
            self._last[name] = max((point.step for point in history), default=-1)
        return self._last[name]

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._client.log_image(
            self._run, image, artifact_file=f"previews/step-{step:06d}-{name}.png"
        )

    def flush(self) -> None:
        """Numbers are sent at once."""

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandB:
    """A run of a Weights & Biases project, which the same run name continues.

    It takes no step twice, so the steps that a resumed run repeats are not logged again.
    """

    def __init__(self, project: str, run_name: str):
        self._wandb = _package("wandb", project)
        self._run: Any = self._wandb.init(
            project=project, id=run_name, name=run_name, resume="allow"
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(numbers, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        if step >= self._run.step:
            self._run.log({f"preview/{name}": self._wandb.Image(image)}, step=step)

    def flush(self) -> None:
        """Its own thread sends what it has."""

    def close(self) -> None:
        self._run.finish()


def _package(name: str, setting: str) -> Any:
    """The client library. Raises ValueError where it is not installed."""
    try:
        if name == "mlflow":
            import mlflow

            return mlflow
        import wandb

        return wandb
    except ImportError:
        raise ValueError(
            f"tracking.{name}: got {setting!r}, but {name} is not installed; expected its package. "
            f"Run `pip install {name}`, or leave tracking.{name} out"
        ) from None
