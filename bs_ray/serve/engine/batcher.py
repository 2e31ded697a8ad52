"""Continuous batching by steps: edits at different steps, sliders and strengths share a forward.

Edits join and leave between steps. Each is a method's generator (`editing.steps`), so its result is
what the Editor would have given it alone. What the next step is made of is decided here, on the
event loop; torch runs on one thread of its own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from bs_ray.editing.editor import Edited, Editor, PhotoEditRun, to_uint8
from bs_ray.editing.generate import begin_generating, pictures
from bs_ray.editing.methods import request_count
from bs_ray.editing.run import DenoiseRequest, EditRun, denoise_together
from bs_ray.serve.engine.admission import Load, Pace, finish_times
from bs_ray.serve.engine.tasks import (
    Busy,
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
"""Steps that failed in a row, each edit on its own, after which the engine calls itself broken."""


class Watcher(Protocol):
    """Who counts what happens here."""

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
    """Queries that it will have asked in the end, as far as is known before."""
    arrived_s: float
    deadline_s: float
    events: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """Its asker has left: it leaves at the next step."""
    run: EditRun | None = None
    began_s: float = 0.0
    company: int = 0
    """Edits that shared its steps so far, summed over steps."""

    @property
    def load(self) -> Load:
        done = self.run.evaluated if self.run else 0
        return Load(max(1, self.steps - done), self.task.rows)


class Batcher:
    """An Editor whose edits come from many askers at any time."""

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
        """max_rows: edits in one forward pass. max_waiting: tasks beyond those that run.

        step_timeout_s: a step that takes longer hangs, see `check`.
        """
        self.editor, self._watcher = editor, watcher
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._step_timeout_s, self._clock = step_timeout_s, clock
        self._waiting: deque[_Ticket] = deque()
        self._running: list[_Ticket] = []
        self._pace = Pace()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._step_began_s: float | None = None
        self._failures = 0

    # --- for askers ---------------------------------------------------------------------------
    async def submit(self, task: Task, sliders: Mapping[str, Slider]) -> AsyncIterator[Event]:
        """The task's steps, partial pictures and, last, its Result; closing it calls the task off.

        sliders: what the task's mixes name. Raises Busy where it would be late or make others
        late, and what Editor.check and Editor.begin raise.
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
        """Raises RuntimeError for an engine that only a new process will mend."""
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
            self.editor.check(task.edit, sliders)
        self._refuse_if_late(ticket, now)
        self._waiting.append(ticket)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        self._wake.set()
        return ticket

    def _refuse_if_late(self, ticket: _Ticket, now: float) -> None:
        """Raise Busy where the queue is full, or anyone would miss their deadline."""
        if len(self._waiting) >= self._max_waiting:
            self._watcher.finished("refused")
            raise Busy(f"{len(self._waiting)} edits are waiting", self._pace.step_s(self._max_rows))
        running = [t.load for t in self._running]
        others = [t for t in self._waiting if not t.gone]
        everyone = [*self._running, *others, ticket]
        without = finish_times(running, [t.load for t in others], self._max_rows, self._pace)
        times = finish_times(
            running, [t.load for t in [*others, ticket]], self._max_rows, self._pace
        )
        # Who is late anyway keeps nobody out. The newcomer itself has no time without it: -inf.
        late_s = max(
            now + found - t.deadline_s if now + alone <= t.deadline_s else 0.0
            for found, alone, t in zip(times, [*without, -math.inf], everyone, strict=True)
        )
        # An idle engine takes what comes, else a deadline too short would never be found out.
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
            except Exception as error:  # of the step as a whole, which nobody should wait for
                self._failures += 1
                outcomes = [(ticket, error) for ticket in self._running]
            self._step_began_s = None
            for ticket, event in outcomes:
                self._report(ticket, event)

    def _leave(self) -> None:
        """Let go of those whose asker has left or whose time is up."""
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
        """Those that start now: in order of arrival, as long as rows and sliders fit."""
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
        sliders = {name for t in together for name in t.sliders}
        rows = sum(t.task.rows for t in together)
        return rows <= self._max_rows and len(sliders) <= len(self.editor.bank.names)

    def _report(self, ticket: _Ticket, event: Event | Exception) -> None:
        ticket.events.put_nowait(event)
        if isinstance(event, Result | Exception):
            self._running.remove(ticket)
            self._watcher.finished("done" if isinstance(event, Result) else "failed")

    # --- on the thread ------------------------------------------------------------------------
    def _step(self, joining: Sequence[_Ticket]) -> list[tuple[_Ticket, Event | Exception]]:
        """Start those that join, one step of everybody, finish those that are done."""
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
        failed = {id(ticket) for ticket, event in outcomes if isinstance(event, Exception)}
        for ticket in self._running:
            ticket.company += rows
            if id(ticket) not in failed:
                outcomes += self._progress(ticket)
        seconds = self._clock() - began_s
        self._pace.learn(rows, seconds)
        self._watcher.stepped(rows, seconds)
        return outcomes

    def _begin(self, ticket: _Ticket) -> None:
        beside = [s for t in self._running if t.run for s in t.run.sliders]
        task = ticket.task
        if isinstance(task, EditTask):
            ticket.run = self.editor.begin([task.edit], beside)
        else:
            count = task.rows
            ticket.run = begin_generating(
                self.editor,
                [task.prompt] * count,
                [dict(mix) for mix in task.mixes],
                keys=[task.prompt] * count,
                seeds=[task.seed] * count,
                steps=task.steps,
                guidance_scale=task.guidance_scale,
                beside=beside,
            )

    def _buckets(self) -> list[list[tuple[_Ticket, EditRun, DenoiseRequest]]]:
        """Those with a query, by the size of their latents."""
        found: dict[torch.Size, list[tuple[_Ticket, EditRun, DenoiseRequest]]] = {}
        for ticket in self._running:
            run = ticket.run
            if run and run.query:
                size = run.query.x_t.shape[1:]
                found.setdefault(size, []).append((ticket, run, run.query))
        return list(found.values())

    def _advance(
        self, together: Sequence[tuple[_Ticket, EditRun, DenoiseRequest]]
    ) -> list[tuple[_Ticket, Exception]]:
        """One step of all; where it fails, of each alone, so that one's error is its own."""
        try:
            read = denoise_together([query for _, _, query in together], self.editor.predict)
        except Exception as error:
            if len(together) == 1:
                self._failures += 1
                return [(together[0][0], error)]
            return [failed for one in together for failed in self._advance([one])]
        self._failures = 0
        failed: list[tuple[_Ticket, Exception]] = []
        for (ticket, run, _), prediction in zip(together, read, strict=True):
            try:
                # Never twice: of one that has moved on, the others' trouble is no concern.
                with torch.no_grad():
                    run.take(prediction)
            except Exception as error:
                failed.append((ticket, error))
        return failed

    def _progress(self, ticket: _Ticket) -> list[tuple[_Ticket, Event | Exception]]:
        run = ticket.run
        assert run
        try:
            if not run.query:
                return [(ticket, self._result(ticket))]
            found: list[tuple[_Ticket, Event | Exception]] = [
                (ticket, Step(run.evaluated, ticket.steps))
            ]
            if (index := _partial_at(ticket)) is not None and run.query.estimate is not None:
                shown = [to_uint8(p) for p in self._pixels(run, run.query.estimate)]
                found.append((ticket, Partial(index, shown)))
            return found
        except Exception as error:
            return [(ticket, error)]

    def _result(self, ticket: _Ticket) -> Result:
        run = ticket.run
        assert run and run.latents is not None
        if isinstance(run, PhotoEditRun):
            [outputs] = self.editor.finish(run)
        else:
            outputs = [Edited(p) for p in self._pixels(run, run.latents)]
        return Result(
            outputs,
            batch_rows=ticket.company / max(1, run.evaluated),
            queue_s=ticket.began_s - ticket.arrived_s,
            compute_s=self._clock() - ticket.began_s,
        )

    def _pixels(self, run: EditRun, latents: torch.Tensor) -> list:
        """float32 [H, W, 3] in [0, 255] for each mix."""
        if isinstance(run, PhotoEditRun):
            return run.pixels(latents)[0]
        shown = pictures(self.editor, latents)
        return list(((shown + 1) * 127.5).permute(0, 2, 3, 1).numpy())


def _steps_of(task: Task, editor: Editor) -> int:
    if isinstance(task, GenerateTask):
        return task.steps
    return request_count(task.edit.settings or editor.settings)


def _partial_at(ticket: _Ticket) -> int | None:
    """Which of its partial pictures is due now, if any: they are spread evenly over the steps."""
    assert ticket.run
    count, done = ticket.task.partials, ticket.run.evaluated
    due = [round(ticket.steps * (i + 1) / (count + 1)) for i in range(count)]
    return due.index(done) if done in due else None
