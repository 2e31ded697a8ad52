"""A board that workers anywhere post their progress to, and a bar on the driver that shows it.

    with progress(console, "train smile") as board:   # board travels to any worker
        board.post("train", step, steps, {"triplet": 0.3})

A post never fails the work, and only a stage's last one waits, so that its bar ends full: a board
that is gone is simply not read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_POLL_S = 0.5
_LINES = 10  # a console that is no terminal gets about this many lines per stage


@dataclass(frozen=True)
class Posted:
    """The last thing said about one stage."""

    step: int
    total: int
    numbers: dict[str, float]


class _BoardActor:
    """The last post of every stage, in the order in which stages began."""

    def __init__(self) -> None:
        self._stages: dict[str, Posted] = {}

    def post(self, stage: str, posted: Posted) -> None:
        self._stages[stage] = posted

    def read(self) -> dict[str, Posted]:
        return self._stages


class Board:
    """A picklable handle on the board."""

    def __init__(self, actor: Any = None):
        self._actor = actor

    def post(self, stage: str, step: int, total: int, numbers: dict[str, float]) -> None:
        """`step` of `total` of a stage are done; `numbers` stand beside the bar."""
        if self._actor is not None:
            posted = self._actor.post.remote(stage, Posted(step, total, numbers))
            if step >= total:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(posted, timeout=_POLL_S)


class _Bars:
    """Shows a board: live bars on a terminal, some lines elsewhere (a log, a pipe)."""

    def __init__(self, console: Console, title: str):
        self._console, self._title = console, title
        self._shown: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )

    def __enter__(self) -> _Bars:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def show(self, stages: dict[str, Posted]) -> None:
        for stage, posted in stages.items():
            numbers = "  ".join(f"{name} {value:.3g}" for name, value in posted.numbers.items())
            if self._console.is_terminal:
                self._draw(stage, posted, numbers)
            else:
                self._print(stage, posted, numbers)

    def _draw(self, stage: str, posted: Posted, numbers: str) -> None:
        if stage not in self._tasks:
            label = f"{self._title}: {stage}"
            self._tasks[stage] = self._bars.add_task(label, total=None, rate="", numbers="")
        task = self._tasks[stage]
        speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
        rate = f"{speed:.2f}/s" if speed else ""
        self._bars.update(
            task, total=posted.total, completed=posted.step, rate=rate, numbers=numbers
        )

    def _print(self, stage: str, posted: Posted, numbers: str) -> None:
        tenth = posted.step * _LINES // max(posted.total, 1)
        if self._shown.get(stage) != tenth:
            self._shown[stage] = tenth
            self._console.print(
                f"{self._title}: {stage} {posted.step}/{posted.total}  {numbers}",
                markup=False,
                soft_wrap=True,
            )


@contextlib.contextmanager
def progress(console: Console | None, title: str) -> Iterator[Board]:
    """A board for the time within, shown on `console`; shown nowhere where that is None.

    Ray must be running. The main thread stays free: a thread of its own reads the board.
    """
    if console is None:
        yield Board()
        return
    actor = ray.remote(num_cpus=0)(_BoardActor).remote()
    stop = threading.Event()
    with _Bars(console, title) as bars:
        reader = threading.Thread(target=_follow, args=(actor, bars, stop), daemon=True)
        reader.start()
        try:
            yield Board(actor)
        finally:
            stop.set()
            reader.join(timeout=10)
    ray.kill(actor)


def _follow(actor: Any, bars: _Bars, stop: threading.Event) -> None:
    with contextlib.suppress(ray.exceptions.RayError):  # the board is gone: nothing to show
        while not stop.wait(_POLL_S):
            bars.show(ray.get(actor.read.remote()))
        bars.show(ray.get(actor.read.remote()))
