"""The side that computes: one base with its sliders resident, edits of many requests batched."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ray.serve import metrics

from bs_ray.config import ServeJob
from bs_ray.editing.editor import Edit, Edited, Editor, Outcome, outputs_of
from bs_ray.models import load_base
from bs_ray.serve.batcher import Batcher
from bs_ray.sliders.registry import Registry

_UNHEALTHY_AFTER = 3
"""Failures in a row after which a replica asks to be replaced."""


@dataclass(frozen=True)
class Reply:
    """One edited photo."""

    edited: Edited
    batch_rows: int
    """Edits that were computed together with it, itself included."""


def load_editor(job: ServeJob) -> Editor:
    """The job's base and sliders as an Editor.

    Raises BaseNotFound, or SliderError where a slider is missing or belongs to another base.
    """
    model = load_base(job.base, device="cuda" if job.gpus_per_replica else "cpu")
    registry = Registry(job.registry)
    return Editor(model, [registry.resolve(reference) for reference in job.sliders], job.editor)


class EditorReplica:
    """A Ray Serve replica around one Editor."""

    def __init__(self, job: ServeJob):
        self._editor = load_editor(job)
        self._batcher: Batcher[Edit, Outcome] = Batcher(
            self._run, max_rows=job.max_batch_rows, wait_s=job.batch_wait_ms / 1000
        )
        self._edits = metrics.Counter(
            "bs_ray_edits", description="Edits asked for.", tag_keys=("outcome",)
        )
        self._rows = metrics.Histogram(
            "bs_ray_batch_rows",
            description="Edits that were computed together.",
            boundaries=[1, 2, 4, 8, 16, 32, 64],
        )
        self._seconds = metrics.Histogram(
            "bs_ray_batch_seconds",
            description="Time to compute one batch.",
            boundaries=[0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
        )

    async def edit(self, edit: Edit) -> Reply:
        """One photo under one mix of sliders."""
        outcome = "failed"
        try:
            found, rows = await self._batcher.submit(edit)
            (edited,) = outputs_of(found)
            outcome = "done"
        finally:
            self._edits.inc(tags={"outcome": outcome})
        return Reply(edited, rows)

    async def ready(self) -> None:
        """Answers once base and sliders are loaded."""

    async def check_health(self) -> None:
        """Raises once every edit fails: a broken CUDA context is cured by a new process only."""
        if self._batcher.failures_in_a_row >= _UNHEALTHY_AFTER:
            raise RuntimeError(f"the last {self._batcher.failures_in_a_row} edits failed")

    def _run(self, edits: list[Edit]) -> list[Outcome]:
        start = time.perf_counter()
        outcomes = self._editor.edit(edits)
        self._rows.observe(len(edits))
        self._seconds.observe(time.perf_counter() - start)
        return outcomes
