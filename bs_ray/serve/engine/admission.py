"""When tasks will be done: how long steps took so far, and which tasks will share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SMOOTHING = 0.2
"""Weight of the newest step in a running mean."""


@dataclass
class Load:
    """What is left of one task."""

    steps: int
    rows: int


class StepTime:
    """How long a step takes, by how many edits share it."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, rows: int, seconds: float) -> None:
        """A step of `rows` edits took `seconds`."""
        known = self._seconds.get(rows)
        self._seconds[rows] = seconds if known is None else known + _SMOOTHING * (seconds - known)

    def expected_s(self, rows: int) -> float:
        """Expected seconds of a step of `rows` edits; 0 before anything was measured.

        The time is extrapolated from the nearest count that was measured, in proportion to the
        rows. For a GPU that is not full this is too long, which the first such step corrects.
        """
        if not rows or not self._seconds:
            return 0.0
        nearest = min(self._seconds, key=lambda known: abs(known - rows))
        return self._seconds[nearest] * max(1.0, rows / nearest)


def finish_times(
    running: Sequence[Load], waiting: Sequence[Load], max_rows: int, step_time: StepTime
) -> list[float]:
    """Seconds from now until each task is done, the running ones first.

    Running tasks share every step. Waiting ones join in their order, each once its rows fit.
    """
    loads = [*running, *waiting]
    left = [load.steps for load in loads]
    active, queue = list(range(len(running))), list(range(len(running), len(loads)))
    found, now = [0.0] * len(loads), 0.0
    while active or queue:
        rows = sum(loads[i].rows for i in active)
        while queue and (not active or rows + loads[queue[0]].rows <= max_rows):
            active.append(queue.pop(0))
            rows += loads[active[-1]].rows
        count = max(1, min(left[i] for i in active))
        now += count * step_time.expected_s(rows)
        for i in active:
            left[i] -= count
            if left[i] <= 0:
                found[i] = now
        active = [i for i in active if left[i] > 0]
    return found
