"""A board that workers anywhere post their progress to, and a bar on the driver that shows it.

    with progress(console, "train smile") as board:   # board travels to any worker
        board.post("train", step, steps, {"triplet": 0.3})

A post never fails the work, and only a stage's last one waits, so that its bar ends full: a board
that is gone is simply not read.
"""

from __future__ import annotations

import contextlib
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_POLL_S = 0.5
_LINES = 10  # a console that is no terminal gets about this many lines per stage
_SHORT = {"triplet": "tri", "perceptual": "perp", "adversarial": "adv", "discriminator": "disc"}
"""Names on a terminal, where room is scarce."""


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

    def __init__(self, console: Console, title: str, clock: Callable[[], float] = time.monotonic):
        self._console, self._title, self._clock = console, title, clock
        self._shown: dict[str, int] = {}
        self._began: dict[str, tuple[int, float]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = _BarsWithNumbers(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
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
            if self._console.is_terminal:
                self._draw(stage, posted)
            else:
                self._print(stage, posted)

    def _draw(self, stage: str, posted: Posted) -> None:
        if stage not in self._tasks:
            label = f"{self._title}: {stage}"
            self._tasks[stage] = self._bars.add_task(label, total=None, rate="", numbers={})
        task = self._tasks[stage]
        speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
        self._bars.update(
            task,
            total=posted.total,
            completed=posted.step,
            rate=_rate(speed),
            numbers=posted.numbers,
        )

    def _print(self, stage: str, posted: Posted) -> None:
        now = self._clock()
        first, start_s = self._began.setdefault(stage, (posted.step, now))
        tenth = posted.step * _LINES // max(posted.total, 1)
        if self._shown.get(stage) == tenth:
            return
        self._shown[stage] = tenth
        parts = [f"{self._title}: {stage} {posted.step}/{posted.total}"]
        if posted.step > first and now > start_s:
            speed = (posted.step - first) / (now - start_s)
            left_s = round((posted.total - posted.step) / speed)
            parts += [_rate(speed), f"ETA {timedelta(seconds=left_s)}"]
        parts += [f"{name} {value:.3g}" for name, value in posted.numbers.items()]
        self._console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)


class _BarsWithNumbers(Progress):
    """Bars, and below them the numbers of the stage at work, in lines that fit."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        told = [task for task in self.tasks if task.fields["numbers"]]
        if told:
            at_work = next((task for task in told if not task.finished), told[-1])
            for line in _number_lines(at_work.fields["numbers"], self.console.width):
                yield Text(line, style="cyan", no_wrap=True)


def _number_lines(numbers: dict[str, float], width: int) -> list[str]:
    """`tri 0.123  w_tri 0.5` in lines of at most `width`, broken between numbers only."""
    parts = [f"{_short(name)}\xa0{value:.3g}" for name, value in numbers.items()]
    lines = textwrap.wrap("  ".join(parts), width - 2, break_long_words=False)
    return [f"  {line}".replace("\xa0", " ") for line in lines]


def _short(name: str) -> str:
    weight, rest = ("w_", name[2:]) if name.startswith("w_") else ("", name)
    return weight + _SHORT.get(rest, rest)


def _rate(speed: float | None) -> str:
    """Steps a second, or seconds a step where that is the larger number."""
    if not speed:
        return ""
    return f"{speed:.2f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


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
