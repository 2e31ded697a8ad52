"""The denoiser alone: one forward after the other, by batch; channels last; compiled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bs_ray.bench.gpu.base import Bench, bare_forward
from bs_ray.bench.gpu.run import Put

BATCHES = (1, 4, 8)


def forward(bench: Bench, put: Put) -> None:
    for rows in BATCHES:
        seconds, tflop = bench.bare(bench.px, rows)
        speed = tflop / seconds
        put(f"batch {rows}", ms=1e3 * seconds, tflop_s=speed, **bench.mfu(speed))


def channels_last(bench: Bench, put: Put) -> None:
    plain = {rows: bench.bare(bench.px, rows) for rows in BATCHES}
    with channels_last_format(bench.model.denoiser):
        for rows in BATCHES:
            seconds = bench.seconds(bare_forward(bench.model, bench.px, rows))
            _against(bench, put, f"batch {rows}", seconds, plain[rows])


@contextmanager
def channels_last_format(network: nn.Module) -> Iterator[None]:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def compiled(bench: Bench, put: Put) -> None:
    """The denoiser with its repeated blocks compiled; compiling all of it takes minutes."""
    model = bench.model
    plain = {rows: bench.bare(bench.px, rows) for rows in (1, 4)}
    try:
        model.denoiser.compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
        for rows in (1, 4):
            start = time.perf_counter()
            forward = bare_forward(model, bench.px, rows)  # its first forward compiles
            first = time.perf_counter() - start
            seconds = bench.seconds(forward)
            _against(bench, put, f"batch {rows}", seconds, plain[rows], first_s=first)
    finally:
        torch.compiler.reset()
        bench.fresh()


def _against(
    bench: Bench, put: Put, case: str, seconds: float, plain: tuple[float, float], **more: float
) -> None:
    speed = plain[1] / seconds
    found = {"ms": 1e3 * seconds, "tflop_s": speed} | bench.mfu(speed)
    put(case, **found, faster=plain[0] / seconds, **more)
