"""A replica: one base, the sliders that requests name, and a batcher that steps the edits."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from bs_ray.config import EditorSettings, ServeJob
from bs_ray.config.base import OtherBases
from bs_ray.editing.editor import Edit, Editor
from bs_ray.editing.locate import Sight
from bs_ray.models import load_base
from bs_ray.models.base_identity import BaseIdentity
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
    """A Ray Serve replica around one batcher."""

    def __init__(self, job: ServeJob, places: Sequence[str], rank: int):
        """places: of the sliders to begin with. rank: the highest that the bank has room for.

        Raises BaseNotFound.
        """
        setup("bs_ray.replica")
        torch.set_num_threads(max(1, round(job.cpus_per_replica)))
        model = load_base(job.base, device="cuda" if job.gpus_per_replica else "cpu")
        self._metrics = ReplicaMetrics()
        registry = Registry(job.registry)
        base, others = BaseIdentity.of(model), job.other_bases
        first = _read(registry, places[: job.editor.resident_sliders], base, others)
        # Photos are cut where they are decoded; here each view is a photo of its own.
        settings = job.editor.model_copy(update={"region": "photo"})
        slots = job.editor.resident_sliders
        editor = Editor(model, list(first.values()), settings, slots=slots, rank=rank)
        side_px = settings.working_px or model.native_px
        self._sight = Sight(side_px, model.multiple_px, model.framing)
        warm_up(editor)
        self._sliders = SliderCache(
            registry, job.cached_sliders, base, self._metrics.slider_loaded, first, others
        )
        self._batcher = Batcher(
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
        raise RuntimeError("the batcher ended without a result")

    async def events(self, task: Task) -> AsyncIterator[Event]:
        """What happens to the task, its Result last. Raises as `result`."""
        sliders = await self._sliders.take(task.sliders)
        sliders |= {r: Slider(card, {}) for r, card in task.words.items() if r not in sliders}
        own_words = task.words.keys() - task.sliders.keys()
        for reference in [*task.sliders, *(["words"] if own_words else [])]:  # words have no end
            self._metrics.slider_used(reference)
        self._metrics.resident(len(self._sliders.held()))
        async for event in self._batcher.submit(task, sliders):
            yield event

    async def sight(self) -> Sight:
        """What has to be known of the base to cut photos for it."""
        return self._sight

    async def ready(self) -> None:
        """Returns once the base is loaded. Raises RuntimeError as `check_health` does."""
        self._batcher.check()

    def __del__(self) -> None:
        """Send the spans that wait. Ray Serve calls this once the replica has been drained."""
        stop()

    async def check_health(self) -> None:
        """Raise RuntimeError where every step fails or one hangs, so that Serve replaces the
        process."""
        self._batcher.check()


def _read(
    registry: Registry, places: Sequence[str], base: BaseIdentity, others: OtherBases
) -> dict[str, Slider]:
    """Place -> slider, for those that can be read now.

    A registry that is down must not keep a replica from starting.
    """

    def read(place: str) -> Slider | None:
        try:
            return registry.resolve_on(place, base, others)
        except Exception as error:  # a store's errors are of many kinds
            _log.warning("slider %s is left for its first use: %s", place, error)
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(places, pool.map(read, places), strict=True)
        return {place: slider for place, slider in found if slider is not None}


def warm_up(editor: Editor) -> None:
    """One small edit, which loads kernels and fills caches before the first caller has to wait."""
    mix = editor.mix({reference: 0.1 for reference in list(editor.sliders)[:1]})
    side = editor.settings.working_px or editor.model.native_px
    settings: EditorSettings = editor.settings.model_copy(update={"steps": 1})
    photo = np.full((side, side, 3), 128, np.uint8)
    editor.edit([Edit("warm-up", photo, [mix], settings=settings)])
