"""The side that computes: one base, its sliders as they are asked for, an Engine."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from bs_ray.config import EditorSettings, ServeJob
from bs_ray.editing.editor import Edit, Edited, Editor, to_uint8
from bs_ray.models import load_base
from bs_ray.serve.engine.batcher import Batcher
from bs_ray.serve.engine.slider_cache import SliderCache
from bs_ray.serve.engine.tasks import Event, Result, Task
from bs_ray.serve.metrics import ReplicaMetrics
from bs_ray.serve.tracing import setup, span, stop
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

_log = logging.getLogger(__name__)
_READERS = 8
"""Sliders that a starting replica reads at once."""


class EditorReplica:
    """A Ray Serve replica around one Engine."""

    def __init__(self, job: ServeJob, references: Sequence[str], rank: int):
        """references: sliders to begin with; rank: the highest that there is room for.

        Raises BaseNotFound.
        """
        setup("bs_ray.replica")
        torch.set_num_threads(max(1, round(job.cpus_per_replica)))
        model = load_base(job.base, device="cuda" if job.gpus_per_replica else "cpu")
        self._metrics = ReplicaMetrics()
        registry = Registry(job.registry)
        first = _read(registry, references[: job.editor.resident_sliders], model.base_id)
        editor = Editor(
            model, list(first.values()), job.editor, slots=job.editor.resident_sliders, rank=rank
        )
        warm_up(editor, first)
        self._shelf = SliderCache(
            registry, job.cached_sliders, model.base_id, self._metrics.slider_loaded, first
        )
        self._engine = Batcher(
            editor,
            self._metrics,
            max_rows=job.max_batch_rows,
            max_waiting=job.max_queued_requests,
            step_timeout_s=job.step_timeout_s,
        )

    async def result(self, task: Task) -> Result:
        """The task's pictures. Raises Busy, EditError, SliderError."""
        with span("compute", parent=task.trace, rows=task.rows):
            async for event in self.events(task):
                if isinstance(event, Result):
                    return event
        raise RuntimeError("the engine ended without a result")

    async def events(self, task: Task) -> AsyncIterator[Event]:
        """What happens to the task, its Result last. Raises as `result`."""
        sliders = await self._shelf.take(task.sliders)
        for reference in task.sliders:
            self._metrics.slider_used(reference)
        self._metrics.resident(len(self._shelf.held()))
        async for event in self._engine.submit(task, sliders):
            yield event if not isinstance(event, Result) or task.floats else _rounded(event)

    async def ready(self) -> None:
        """Answers once the base is loaded. Raises RuntimeError as `check_health`."""
        self._engine.check()

    def __del__(self) -> None:
        """Ray Serve calls it when a replica was drained; spans that wait are sent."""
        stop()

    async def check_health(self) -> None:
        """Raises once every step fails, or one hangs: what a new process cures."""
        self._engine.check()


def _read(registry: Registry, references: Sequence[str], base_id: str) -> dict[str, Slider]:
    """What can be had now: a registry that is down must not keep a replica from starting."""

    def read(reference: str) -> Slider | None:
        try:
            slider = registry.resolve(reference)
            slider.check_base(base_id)
        except Exception as error:  # a store's errors are of many kinds
            _log.warning("slider %s is left for its first use: %s", reference, error)
            return None
        return slider

    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(references, pool.map(read, references), strict=True)
        return {reference: slider for reference, slider in found if slider is not None}


def warm_up(editor: Editor, sliders: dict[str, Slider]) -> None:
    """One small edit, which loads kernels and fills caches before the first asker pays for it."""
    editor.sliders = dict(sliders)
    mix = {name: 0.1 for name in list(sliders)[:1]}
    side = editor.settings.working_px or editor.model.native_px
    settings: EditorSettings = editor.settings.model_copy(update={"steps": 1})
    photo = np.full((side, side, 3), 128, np.uint8)
    editor.edit([Edit("warm-up", photo, [mix], settings=settings)])


def _rounded(result: Result) -> Result:
    """uint8 travels a quarter as far as float32."""
    outputs = [Edited(to_uint8(o.pixels), o.notes, o.measured) for o in result.outputs]
    return replace(result, outputs=outputs)
