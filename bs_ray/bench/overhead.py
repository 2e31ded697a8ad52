"""The share of a training step that is not the networks' own forward and backward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from bs_ray.bench.train_bench import TrainBench, fresh_hooks
from bs_ray.train.loop import one_step
from bs_ray.train.step import TrainState


def overhead(report: Callable[[str], None], bench: TrainBench | None = None) -> dict[str, float]:
    """Teacher mode -> 1 - (networks alone) / (whole step), the median of interleaved repeats.

    bench: the tiny base's where left out.
    """
    bench, found = bench or TrainBench.load(), {}
    for mode, teacher in (
        ("live", {"mode": "live"}),
        ("cached", {"mode": "cached", "samples": 64}),
    ):
        job = bench.job("smile", 0, batch_size=16, teacher=teacher)
        with fresh_hooks(bench.model):
            state = bench.train_state(job, bench.samples(job))
            share = _overhead(state)
        found[mode] = share
        report(f"{mode}: {share:.1%} of a step is not the networks' forward and backward")
    return found


def _overhead(state: TrainState, repeats: int = 7) -> float:
    """The share of one job; the networks are timed within real steps, call by call."""
    shares = []
    with _network_clock(state) as clock:
        for step in range(repeats):
            clock.seconds, begun = 0.0, time.perf_counter()
            one_step(
                state, state.job.steps - 1 - step
            )  # a late step, in which every loss takes part
            whole = time.perf_counter() - begun
            shares.append(1 - clock.seconds / whole)
    return statistics.median(shares)


class _Clock:
    """Adds up the time within timed calls; a call within another one counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            begun = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begun

        return run


@contextmanager
def _network_clock(state: TrainState) -> Iterator[_Clock]:
    """A clock that runs, in the `with` block, during passes of the base's networks and judges."""
    clock = _Clock()
    places: list[tuple[Any, str]] = [
        *((state.model, name) for name in ("predict", "decode", "encode", "embed")),
        *((torch.autograd, name) for name in ("grad", "backward")),
        *([(state, "features")] if state.features else []),
    ]
    if state.adversary is not None:
        places.append((state.adversary.critic, "score"))
    with ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(patch.object(owner, name, clock.timed(getattr(owner, name))))
        yield clock
