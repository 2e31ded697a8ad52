"""`bs-ray edit --watch`: rounds at fixed times, after errors too, until SIGTERM."""

import io
import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from bs_ray.batch.lease import JobTakenError
from bs_ray.batch.prepare import EditFailed
from bs_ray.batch.run import EditSummary
from bs_ray.batch.watch import watch


def summary_of(**changes: Any) -> EditSummary:
    zero = EditSummary(9, 9, 0, 9, 0, 1, 0, 1.0, 1.0, 1.0, False, {}, 2, {"new": 9}, {})
    return replace(zero, made={"edited": 9, "quarantined": 0}, **changes)


def test_rounds_go_on_after_an_error_but_not_in_the_first() -> None:
    text, outcomes = io.StringIO(), [None, EditFailed("no store"), JobTakenError("other"), None]
    console = Console(file=text, width=200)

    def once() -> EditSummary:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return summary_of(nothing_to_do=not outcomes)

    started = time.monotonic()
    assert watch(once, 0.1, 4, console) == summary_of(nothing_to_do=True)
    assert 0.29 < time.monotonic() - started < 2
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("round 1: generation 2: 9 new; 9 edited + 0 quarantined")
    assert lines[1:] == [
        "round 2: failed: no store",
        "round 3: failed: other",
        "round 4: nothing new among 9 photos",
    ]
    outcomes = [EditFailed("bad from the start")]
    with pytest.raises(EditFailed):
        watch(once, 0.1, 4, console)


@pytest.mark.parametrize("during", ["a round", "the pause"])
def test_sigterm_ends_a_watch_cleanly(during: str) -> None:
    text, ended = io.StringIO(), []

    def once() -> EditSummary:
        try:
            if during == "a round":
                time.sleep(20)
        finally:
            ended.append(True)
        return summary_of()

    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
    last = watch(once, 20, None, Console(file=text, width=200))
    assert last == (summary_of() if during == "the pause" else None) and ended == [True]
    assert "stopped by SIGTERM" in text.getvalue()
    assert signal.getsignal(signal.SIGTERM) == before
