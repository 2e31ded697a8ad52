"""Continuous batching: edits at different steps, with different sliders, share forward passes.

Edits join and leave between steps. Each is an EditRun (editing/run.py), so its result is what the
Editor would have given it alone. The event loop decides which edits take part in the next step;
torch runs on one thread of its own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from bs_ray.editing.editor import Editor, PhotoEditRun, to_uint8
from bs_ray.editing.generate import begin_generating, pictures
from bs_ray.editing.methods import request_count
from bs_ray.editing.run import DenoiseRequest, EditRun, denoise_together
from bs_ray.editing.views import as_pixels
from bs_ray.models.prompts import cut_notes
from bs_ray.serve.engine.admission import Load, StepTime, finish_times
from bs_ray.serve.engine.tasks import (
    Busy,
    Changes,
    EditTask,
    Event,
    GenerateTask,
    Partial,
    Result,
    Step,
    Task,
)
from bs_ray.sliders.slider import Slider

if TYPE_CHECKING:
    from bs_ray.serve.metrics import Outcome

_BROKEN_AFTER = 3
"""The batcher is broken once this many steps in a row have failed for every edit alone."""


class Watcher(Protocol):
    """Counts what happens in a Batcher; see ReplicaMetrics."""

    def stepped(self, rows: int, seconds: float) -> None: ...
    def queued(self, seconds: float) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...
    def occupancy(self, running: int, waiting: int) -> None: ...


@dataclass(eq=False)
class _Ticket:
    """One task on its way."""

    task: Task
    sliders: Mapping[str, Slider]
    steps: int
    """Denoise requests that its run will make, as far as is known beforehand."""
    arrived_s: float
    deadline_s: float
    events: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """Whether its caller has left; the task then leaves at the next step."""
    run: EditRun | None = None
    began_s: float = 0.0
    company: int = 0
    """How many edits shared its steps so far, summed over the steps."""

    @property
    def load(self) -> Load:
        done = self.run.evaluated if self.run else 0
        return Load(max(1, self.steps - done), self.task.weight)


class Batcher:
    """An Editor for many callers, whose edits come at any time."""

    def __init__(
        self,
        editor: Editor,
        watcher: Watcher,
        *,
        max_rows: int,
        max_waiting: int,
        step_timeout_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """max_rows: edits in one forward pass, where each prompt of words counts as one more.
        max_waiting: tasks that may wait for their turn.

        step_timeout_s: a step that takes longer counts as hanging, see `check`.
        """
        self.editor, self._watcher = editor, watcher
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._step_timeout_s, self._clock = step_timeout_s, clock
        self._waiting: deque[_Ticket] = deque()
        self._running: list[_Ticket] = []
        self._step_time = StepTime()
        self._thread = ThreadPoolExecutor(1, "batcher")
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._step_began_s: float | None = None
        self._failures = 0

    # --- for callers --------------------------------------------------------------------------
    async def submit(self, task: Task, sliders: Mapping[str, Slider]) -> AsyncIterator[Event]:
        """The task's steps, partial pictures and, last, its Result. Closing it cancels the task.

        sliders: those that the task's mixes name, by name@version. Raises Busy where the task would
        be late or would make others late, and what Editor.check and Editor.begin raise.
        """
        ticket = self._admit(task, sliders)
        try:
            while True:
                event = await ticket.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Result):
                    return
        finally:
            ticket.gone = True

    def check(self) -> None:
        """Raise RuntimeError where only a new process will help."""
        if self._failures >= _BROKEN_AFTER:
            raise RuntimeError(f"the last {self._failures} steps failed")
        began_s = self._step_began_s
        if began_s is not None and self._clock() - began_s > self._step_timeout_s:
            raise RuntimeError(f"a step has not ended for {self._step_timeout_s:g} s")

    def _admit(self, task: Task, sliders: Mapping[str, Slider]) -> _Ticket:
        now = self._clock()
        steps = _steps_of(task, self.editor)
        ticket = _Ticket(task, sliders, steps, now, now + task.within_s)
        if isinstance(task, EditTask):
            for edit in task.edits:
                self.editor.check(edit)
        self._refuse_if_late(ticket, now)
        self._waiting.append(ticket)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        self._wake.set()
        return ticket

    def _refuse_if_late(self, ticket: _Ticket, now: float) -> None:
        """Raise Busy where the queue is full, or where any task would miss its deadline."""
        if len(self._waiting) >= self._max_waiting:
            self._watcher.finished("refused")
            raise Busy(
                f"{len(self._waiting)} edits are waiting",
                self._step_time.expected_s(self._max_rows),
            )
        running = [t.load for t in self._running]
        others = [t for t in self._waiting if not t.gone]
        everyone = [*self._running, *others, ticket]
        without = finish_times(running, [t.load for t in others], self._max_rows, self._step_time)
        times = finish_times(
            running, [t.load for t in [*others, ticket]], self._max_rows, self._step_time
        )
        # A task that will be late anyway keeps no newcomer out. Without the newcomer every task has
        # a finish time, but the newcomer has none: -inf makes its own deadline count.
        late_s = max(
            now + found - t.deadline_s if now + alone <= t.deadline_s else 0.0
            for found, alone, t in zip(times, [*without, -math.inf], everyone, strict=True)
        )
        # An idle batcher takes any task; else a step that seems too slow would never be measured
        # anew.
        if late_s > 0 and len(everyone) > 1:
            self._watcher.finished("refused")
            raise Busy(f"this edit, or one before it, would be {late_s:.2g} s late", late_s)

    # --- the loop -----------------------------------------------------------------------------
    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._leave()
            joining = self._joining()
            self._watcher.occupancy(sum(t.task.rows for t in self._running), len(self._waiting))
            if not self._running:
                self._wake.clear()
                await self._wake.wait()
                continue
            self._step_began_s = self._clock()
            try:
                outcomes = await loop.run_in_executor(self._thread, self._step, joining)
            except Exception as error:  # the step as a whole failed: every caller gets the error
                self._failures += 1
                outcomes = [(ticket, error) for ticket in self._running]
            self._step_began_s = None
            for ticket, event in outcomes:
                self._report(ticket, event)

    def _leave(self) -> None:
        """Drop tasks whose caller has left or whose time is up."""
        now = self._clock()
        for ticket in [*self._running, *self._waiting]:
            if ticket.gone:
                self._watcher.finished("cancelled")
        self._running = [t for t in self._running if not t.gone]
        kept = [t for t in self._waiting if not t.gone]
        self._waiting = deque(t for t in kept if now < t.deadline_s)
        for ticket in kept:
            if now >= ticket.deadline_s:
                self._watcher.finished("refused")
                ticket.events.put_nowait(Busy("the edit waited for its whole time"))

    def _joining(self) -> list[_Ticket]:
        """The tasks that start now: in order of arrival, as long as rows and sliders fit."""
        joined: list[_Ticket] = []
        while self._waiting and self._fits(self._waiting[0]):
            ticket = self._waiting.popleft()
            ticket.began_s = self._clock()
            self._watcher.queued(ticket.began_s - ticket.arrived_s)
            self._running.append(ticket)
            joined.append(ticket)
        return joined

    def _fits(self, ticket: _Ticket) -> bool:
        if not self._running:
            return True
        together = [*self._running, ticket]
        sliders = {name for t in together for name, s in t.sliders.items() if s.factors}
        rows = sum(t.task.weight for t in together)
        return rows <= self._max_rows and len(sliders) <= len(self.editor.bank.names)

    def _report(self, ticket: _Ticket, event: Event | Exception) -> None:
        ticket.events.put_nowait(event)
        if isinstance(event, Result | Exception):
            self._running.remove(ticket)
            self._watcher.finished("done" if isinstance(event, Result) else "failed")

    # --- on the thread ------------------------------------------------------------------------
    def _step(self, joining: Sequence[_Ticket]) -> list[tuple[_Ticket, Event | Exception]]:
        """Start the tasks that join, take one step of all, and finish those that are done."""
        began_s = self._clock()
        self.editor.sliders = {n: s for t in self._running for n, s in t.sliders.items()}
        outcomes: list[tuple[_Ticket, Event | Exception]] = []
        for ticket in joining:
            try:
                self._begin(ticket)
            except Exception as error:
                outcomes.append((ticket, error))
        for together in self._buckets():
            outcomes += self._advance(together)
        rows = sum(t.task.rows for t in self._running)
        weight = sum(t.task.weight for t in self._running)
        failed = {id(ticket) for ticket, event in outcomes if isinstance(event, Exception)}
        for ticket in self._running:
            ticket.company += rows
            if id(ticket) not in failed:
                outcomes += self._progress(ticket)
        seconds = self._clock() - began_s
        self._step_time.learn(weight, seconds)
        self._watcher.stepped(rows, seconds)
        return outcomes

    def _begin(self, ticket: _Ticket) -> None:
        beside = [s for t in self._running if t.run for s in t.run.sliders]
        task = ticket.task
        if isinstance(task, EditTask):
            ticket.run = self.editor.begin(task.edits, beside)
        else:
            count = task.rows
            ticket.run = begin_generating(
                self.editor,
                [task.prompt] * count,
                task.mixes,
                keys=[task.prompt] * count,
                seeds=[task.seed] * count,
                steps=task.steps,
                guidance_scale=task.guidance_scale,
                beside=beside,
            )

    def _buckets(self) -> list[list[tuple[_Ticket, EditRun, DenoiseRequest]]]:
        """The runs that wait for a prediction, by the size of their latents."""
        found: dict[torch.Size, list[tuple[_Ticket, EditRun, DenoiseRequest]]] = {}
        for ticket in self._running:
            run = ticket.run
            if run and run.request:
                size = run.request.x_t.shape[1:]
                found.setdefault(size, []).append((ticket, run, run.request))
        return list(found.values())

    def _advance(
        self, together: Sequence[tuple[_Ticket, EditRun, DenoiseRequest]]
    ) -> list[tuple[_Ticket, Exception]]:
        """One step of all; where that fails, of each alone, so that an error concerns its own
        task."""
        try:
            read = denoise_together([request for _, _, request in together], self.editor.predict)
        except Exception as error:
            if len(together) == 1:
                self._failures += 1
                return [(together[0][0], error)]
            return [failed for one in together for failed in self._advance([one])]
        self._failures = 0
        failed: list[tuple[_Ticket, Exception]] = []
        for (ticket, run, _), prediction in zip(together, read, strict=True):
            try:
                # Outside of the `try` above, so that no run that has taken its step takes it twice.
                with torch.no_grad():
                    run.take(prediction)
            except Exception as error:
                failed.append((ticket, error))
        return failed

    def _progress(self, ticket: _Ticket) -> list[tuple[_Ticket, Event | Exception]]:
        run = ticket.run
        assert run
        try:
            if not run.request:
                return [(ticket, self._result(ticket))]
            found: list[tuple[_Ticket, Event | Exception]] = [
                (ticket, Step(run.evaluated, ticket.steps))
            ]
            if (index := _partial_at(ticket)) is not None and run.request.estimate is not None:
                found.append((ticket, Partial(index, **self._made(run, run.request.estimate))))
            return found
        except Exception as error:
            return [(ticket, error)]

    def _result(self, ticket: _Ticket) -> Result:
        run = ticket.run
        assert run and run.latents is not None
        return Result(
            **self._made(run, run.latents, getattr(ticket.task, "floats", False)),
            notes=self._notes(ticket.task),
            batch_rows=ticket.company / max(1, run.evaluated),
            queue_s=ticket.began_s - ticket.arrived_s,
            compute_s=self._clock() - ticket.began_s,
        )

    def _notes(self, task: Task) -> list[str]:
        return cut_notes(self.editor.model, [task.prompt]) if isinstance(task, GenerateTask) else []

    def _made(self, run: EditRun, latents: torch.Tensor, floats: bool = False) -> dict[str, Any]:
        """What a Partial or a Result of these latents holds."""
        if isinstance(run, PhotoEditRun):
            return {"changes": _changes(run, latents)}
        shown = ((pictures(self.editor, latents) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        return {"pictures": [one if floats else to_uint8(one) for one in shown]}


def _changes(run: PhotoEditRun, latents: torch.Tensor) -> list[Changes]:
    """For each mix the changes of all views, each of which is an edit of its own."""
    of_views = [
        [np.ascontiguousarray(as_pixels(found[0][1])) if found else None for found in outputs]
        for outputs in run.residuals(latents)
    ]
    return [list(changes) for changes in zip(*of_views, strict=True)]


def _steps_of(task: Task, editor: Editor) -> int:
    if isinstance(task, GenerateTask):
        return task.steps
    return request_count(task.edits[0].settings or editor.settings)


def _partial_at(ticket: _Ticket) -> int | None:
    """The index of the partial picture that is due now, if any; they are spread over the steps."""
    assert ticket.run
    count, done = ticket.task.partials, ticket.run.evaluated
    due = [round(ticket.steps * (i + 1) / (count + 1)) for i in range(count)]
    return due.index(done) if done in due else None
