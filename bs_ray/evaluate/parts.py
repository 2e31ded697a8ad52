"""Parts: what each task of an evaluation measured, kept beside the report until it is done, and on.

A part is named by everything that decides its rows, so the same command goes on where it stopped,
and a job that grows (more photos, another slider) measures what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

import pandas as pd

from bs_ray import __version__
from bs_ray.config import EvalJob, JobError
from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.bases import BaseMeasure
from bs_ray.evaluate.judging import Judging
from bs_ray.evaluate.splits import Split
from bs_ray.evaluate.sweep import BaseTask, SweepTask, Task
from bs_ray.models import identify_base
from bs_ray.storage import Store

_GROWING = {
    *("name", "output", "workers", "splits", "sliders", "registry", "methods", "compare"),
    *("effects", "at_effect", "base_images"),
}
"""Settings that may differ between jobs of one output: they add parts or read them otherwise."""
_JOB = "job.json"


class Parts:
    """The parts of one output."""

    def __init__(
        self,
        job: EvalJob,
        splits: Mapping[str, Split],
        judging: Mapping[str, Judging],
        base: BaseMeasure | None,
    ):
        """Raises JobError where the output holds parts that were measured with other settings, and
        StorageError."""
        self._job, self._splits = job, splits
        self._measured_by = base.digest if base else ""
        self._judges = {name: its.described() for name, its in judging.items()}
        self._store = Store(job.output).join("parts")
        self._sliders: dict[Arm, str] = {}
        self._take()

    def _take(self) -> None:
        fixed = self._job.model_dump(mode="json", exclude=_GROWING)
        text = json.dumps(fixed, indent=2, sort_keys=True) + "\n"
        if self._store.write_if_absent(_JOB, text.encode()):
            return
        there = json.loads(self._store.read(_JOB))
        odd = sorted(name for name in {*there, *fixed} if there.get(name) != fixed.get(name))
        if odd:
            raise JobError(
                f"output: got {self._job.output}, which holds an evaluation with other settings: "
                + "; ".join(f"{n} {there.get(n)!r}, now {fixed.get(n)!r}" for n in odd)
                + f". Choose another output, or delete {self._store.uri} to measure anew"
            )

    def done(self, tasks: Sequence[Task]) -> dict[Task, pd.DataFrame]:
        """The rows of the tasks that an earlier run measured."""
        there = {entry.key for entry in self._store.list()}
        keys = {task: self._key(task) for task in tasks}
        return {
            task: pd.read_parquet(BytesIO(self._store.read(key)))
            for task, key in keys.items()
            if key in there
        }

    def keep(self, task: Task, rows: pd.DataFrame) -> None:
        """Store what a task measured."""
        self._store.write(self._key(task), to_parquet(rows))

    def _key(self, task: Task) -> str:
        job = self._job
        content: dict[str, Any] = {"version": __version__, "seed": job.seed}
        if isinstance(task, BaseTask):
            content |= {"base": identify_base(job.base).id, "total": job.base_images}
            content |= {"by": self._measured_by} if self._measured_by else {}
        else:
            content |= {"split": self._splits[task.split].digest}
        if isinstance(task, SweepTask):
            content |= {
                "arm": self._content(task.arm),
                "judges": self._judges[task.split],
                "strengths": job.strengths,
                "guidance": job.guidance_scale,
            }
        content |= {name: value for name, value in asdict(task).items() if name != "arm"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
        return f"{type(task).__name__.lower()}-{digest.hexdigest()[:24]}.parquet"

    def _content(self, arm: Arm) -> str:
        """What an arm is, whatever it is called."""
        if arm not in self._sliders:
            slider = hashlib.sha256(arm.resolved().to_bytes()).hexdigest()
            editor = arm.editor.model_dump(mode="json")
            content = [arm.group, arm.name, slider, identify_base(arm.base).id, editor]
            self._sliders[arm] = json.dumps(content)
        return self._sliders[arm]


def to_parquet(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file."""
    file = BytesIO()
    table.to_parquet(file)
    return file.getvalue()
