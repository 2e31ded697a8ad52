"""`bs-ray bench gpu`: runs the rows within a given time, and shows their figures.

Rows are independent: where one fails, a line tells so and the others go on. Rows that no longer fit
into the time are named.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from bs_ray.bench.gpu.base import Bench

Figures = dict[str, Any]
Report = Callable[[str], None]


class OutOfTime(KeyboardInterrupt):
    """A row's time is up. It is an interrupt, since libraries catch other exceptions."""


@dataclass(frozen=True)
class Row:
    """Something to measure."""

    name: str
    seconds: float
    """About what it takes on an H100. Where less time is left, the row is left out."""
    measure: Callable[[Bench, Put], None]


@dataclass
class Put:
    """Takes a row's figures, case by case: put("batch 4", ms=.., mfu=..)."""

    row: str
    report: Report
    cases: dict[str, Figures] = field(default_factory=dict)

    def __call__(self, case: str, **figures: Any) -> None:
        self.cases.setdefault(case, {}).update(figures)
        self.report(f"{self.row}, {case}: {shown(figures)}")


def gpu(
    report: Report,
    base: str = "sdxl-base-1.0",
    px: int = 1024,
    device: str = "cuda",
    seconds: float = 420.0,
    only: Sequence[str] = (),
    json_file: Path | None = None,
) -> Figures:
    """Measure all rows, or those named in `only`, in at most about `seconds`.

    px: side of the edited photos, and of the largest training pictures. json_file: written after
    every row, so that a crash loses no figures. Returns `rows`: row -> case -> figures, and
    `ended`: row -> why it has no figures, or not all.
    """
    start = time.monotonic()
    report("loading torch, diffusers, transformers")
    from bs_ray.bench.gpu.base import Bench
    from bs_ray.bench.gpu.rows import ROWS

    rows = _chosen(ROWS, only)
    found: Figures = {"base": base, "px": px, "rows": {}, "ended": {}}
    with Bench.open(base, px, device, report) as bench:
        found |= bench.about()
        report(f"{found['device']}, torch {found['torch']}: {time.monotonic() - start:.0f} s")
        for row in rows:
            left = start + seconds - time.monotonic()
            put, began = Put(row.name, report), time.monotonic()
            if ended := _measured(row, bench, put, left):
                found["ended"][row.name] = ended
                report(f"{row.name}: {ended}")
            if put.cases:
                found["rows"][row.name] = put.cases
            report(f"{row.name}: {time.monotonic() - began:.1f} s")
            found["seconds"] = time.monotonic() - start
            if json_file:
                json_file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    names = [row.name for row in rows]
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"rows: got {', '.join(unknown)}; expected some of {', '.join(names)}")
    return [row for row in rows if not only or row.name in only]


def _measured(row: Row, bench: Bench, put: Put, left: float) -> str:
    """Measure a row. Returns why it has no figures, or not all; "" where it has."""
    if left < row.seconds:
        return f"skipped: {left:.0f} s left, about {row.seconds:g} s needed"
    try:
        # A row that hangs leaves most of the time to the rows after it.
        with _limit(max(3 * row.seconds, left / 3) if left > 3 * row.seconds else left):
            row.measure(bench, put)
    except OutOfTime:
        ended = "stopped: it took longer than its share of the time"
    except Exception as error:  # of any kind: the other rows go on
        ended = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        bench.trace()
    else:
        return ""
    bench.fresh()  # it may have left hooks or another kind of base behind
    return ended


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the `with` block after so many seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def show(found: Figures, console: Console) -> None:
    """Print all figures as one table."""
    table = Table(
        "row",
        "case",
        "figures",
        title=f"{found['base']}, random weights, {found['px']} px, {found['device']}",
    )
    for row, cases in found["rows"].items():
        for i, (case, figures) in enumerate(cases.items()):
            table.add_row("" if i else row, case, shown(figures))
    for row, ended in found["ended"].items():
        table.add_row(row, "", ended)
    console.print(table, markup=False)
    console.print(f"{found['seconds']:.0f} s in all")


def shown(figures: Figures) -> str:
    """Figures in one line, numbers to three or four digits."""
    parts = []
    for name, value in figures.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        parts.append(f"{name} {f'{value:.4g}' if number else value}")
    return ", ".join(parts)
