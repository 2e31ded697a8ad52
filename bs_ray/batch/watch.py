"""`bs-ray edit --watch`: the same job again and again, at fixed times, until it is told to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from bs_ray.batch.lease import JobTakenError
from bs_ray.batch.prepare import EditFailed, described
from bs_ray.batch.run import EditSummary
from bs_ray.progress import counted
from bs_ray.storage import StorageError


def watch(
    run: Callable[[], EditSummary], every_s: float, rounds: int | None, console: Console
) -> EditSummary | None:
    """Call `run` every `every_s` seconds; returns what the last round that finished returned.

    rounds: how many; None goes on until SIGTERM, which stops a round as Ctrl-C does and is no
    error. A round that takes longer than the interval skips the times that it misses. What fails
    is tried again in the next round, except in the first one: its errors are raised.
    """
    last, number, started = None, 0, time.monotonic()
    terminated: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        while True:
            number += 1
            try:
                last = run()
                outcome = _line(last)
            except (EditFailed, JobTakenError, StorageError) as error:
                if number == 1:
                    raise
                outcome = f"failed: {error}"
            console.print(f"round {number}: {outcome}", soft_wrap=True, highlight=False)
            if number == rounds:
                return last
            time.sleep(every_s - (time.monotonic() - started) % every_s)
    except KeyboardInterrupt:
        if not terminated:
            raise
        console.print(f"stopped by SIGTERM in or after round {number}; what is done is kept")
        return last
    finally:
        signal.signal(signal.SIGTERM, before)


def _line(summary: EditSummary) -> str:
    if summary.nothing_to_do:
        return f"nothing new among {counted(summary.inputs, 'photo')}"
    return (
        f"generation {summary.generation}: {described(summary.changes)}; "
        f"{summary.made['edited']:,} edited + {summary.made['quarantined']:,} quarantined "
        f"in {summary.seconds:.0f} s"
    )
