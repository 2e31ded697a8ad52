"""Progress of work that workers anywhere do, shown as bars on the driver.

    with progress(console, "train smile") as board:   # board can be sent to any worker
        board.report("train", step, steps, {"triplet": 0.3})

A report never fails the work: where the board is gone, nobody reads it. Only a stage's last report
waits until it is read, so that its bar ends full.
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
_LINES = 10  # a console that is no terminal gets about this many lines for each stage
_SHORT = {"triplet": "tri", "perceptual": "perp", "adversarial": "adv", "discriminator": "disc"}
"""Names on a terminal, where there is little room."""


@dataclass(frozen=True)
class Reported:
    """The last report of one stage."""

    step: int
    total: int
    numbers: dict[str, float]


class _BoardActor:
    """The last report of every stage, in the order in which the stages began."""

    def __init__(self) -> None:
        self._stages: dict[str, Reported] = {}

    def report(self, stage: str, reported: Reported) -> None:
        self._stages[stage] = reported

    def read(self) -> dict[str, Reported]:
        return self._stages


class ProgressBoard:
    """A picklable handle on the board."""

    def __init__(self, actor: Any = None):
        self._actor = actor

    def report(self, stage: str, step: int, total: int, numbers: dict[str, float]) -> None:
        """`step` of `total` of a stage are done; `numbers` stand beside the bar."""
        if self._actor is not None:
            import ray

            reported = self._actor.report.remote(stage, Reported(step, total, numbers))
            if step >= total:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(reported, timeout=_POLL_S)


class Bars:
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

    def __enter__(self) -> Bars:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def show(self, stages: dict[str, Reported]) -> None:
        for stage, reported in stages.items():
            if self._console.is_terminal:
                self._draw(stage, reported)
            else:
                self._print(stage, reported)

    def _draw(self, stage: str, reported: Reported) -> None:
        if stage not in self._tasks:
            label = f"{self._title}: {stage}"
            self._tasks[stage] = self._bars.add_task(label, total=None, rate="", numbers={})
        task = self._tasks[stage]
        speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
        self._bars.update(
            task,
            total=reported.total,
            completed=reported.step,
            rate=_rate(speed),
            numbers=reported.numbers,
        )

    def _print(self, stage: str, reported: Reported) -> None:
        now = self._clock()
        first, start_s = self._began.setdefault(stage, (reported.step, now))
        tenth = reported.step * _LINES // max(reported.total, 1)
        if self._shown.get(stage) == tenth:
            return
        self._shown[stage] = tenth
        parts = [f"{self._title}: {stage} {reported.step}/{reported.total}"]
        if reported.step > first and now > start_s:
            speed = (reported.step - first) / (now - start_s)
            left_s = round((reported.total - reported.step) / speed)
            parts += [_rate(speed), f"ETA {timedelta(seconds=left_s)}"]
        parts += [f"{name} {value:.3g}" for name, value in reported.numbers.items()]
        self._console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)


class BarsWithLines(Progress):
    """Bars, and below them some lines about the work in hand."""

    def lines(self) -> Iterable[str]:
        """What stands below the bars now."""
        return ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(line, style="cyan", no_wrap=True) for line in self.lines())


class _BarsWithNumbers(BarsWithLines):
    """Bars, and below them the numbers of the stage at work."""

    def lines(self) -> Iterable[str]:
        with_numbers = [task for task in self.tasks if task.fields["numbers"]]
        if not with_numbers:
            return ()
        at_work = next((task for task in with_numbers if not task.finished), with_numbers[-1])
        return _number_lines(at_work.fields["numbers"], self.console.width)


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


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`, `1,000 photos`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@contextlib.contextmanager
def bar(console: Console, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """One bar with ETA; report(count) moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn(unit), TimeRemainingColumn(), console=console) as shown:
        task = shown.add_task(title, total=total)
        yield lambda count: shown.advance(task, count)


@contextlib.contextmanager
def progress(console: Console | None, title: str) -> Iterator[ProgressBoard]:
    """A board within the `with`, which `console` shows; None shows it nowhere.

    Ray must be running. A thread of its own reads the board, so the main thread stays free.
    """
    if console is None:
        yield ProgressBoard()
        return
    import ray

    actor = ray.remote(num_cpus=0)(_BoardActor).remote()
    stop = threading.Event()
    with Bars(console, title) as bars:
        reader = threading.Thread(target=_follow, args=(actor, bars, stop), daemon=True)
        reader.start()
        try:
            yield ProgressBoard(actor)
        finally:
            stop.set()
            reader.join(timeout=10)
    ray.kill(actor)


def _follow(actor: Any, bars: Bars, stop: threading.Event) -> None:
    import ray

    with contextlib.suppress(ray.exceptions.RayError):  # the board is gone
        while not stop.wait(_POLL_S):
            bars.show(ray.get(actor.read.remote()))
        bars.show(ray.get(actor.read.remote()))
