"""Where a step's time goes, and what TF32 and channels last change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bs_ray.bench.fullsize import fullsize_job
from bs_ray.bench.gpu.base import Bench
from bs_ray.bench.gpu.editing import edit_number, edited, make_editor
from bs_ray.bench.gpu.forward import channels_last_format
from bs_ray.bench.gpu.run import Put
from bs_ray.bench.gpu.training import assembled, random_photos
from bs_ray.config import EditorSettings
from bs_ray.train.engines import PlainEngine
from bs_ray.train.step import train_step


def profiled(bench: Bench, put: Put) -> None:
    """Where the time of a step goes: the kernels that take longest, and the whole step.

    busy: the kernels' time over the time of a step without the profiler. For the rest of the step
    the device waits for Python.
    """
    px = bench.train_px[0]
    state = assembled(
        bench, fullsize_job(bench.base, px, "live"), random_photos(bench, px), PlainEngine
    )
    _profile(bench, put, f"train, live, {px} px", partial(train_step, state, 0))
    state.bank.detach()
    settings = EditorSettings(working_px=bench.px, steps=1)
    editor = make_editor(bench, settings)
    edits = [edit_number(bench, editor, n) for n in range(4)]
    _profile(bench, put, "edit of one step, batch 4", partial(edited, editor, edits))
    editor.close()


def _profile(bench: Bench, put: Put, case: str, function: Callable[[], Any]) -> None:
    bench.once(function)
    seconds = bench.once(function)
    device = "cpu" if bench.device == "cpu" else "cuda"
    with torch.profiler.profile() as profile:
        bench.once(function)
    found = profile.key_averages()
    kernels = [e for e in found if e.device_type.name.lower() == device]
    of = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    busy = sum(getattr(event, of) for event in kernels) / 1e6
    launched = sum(event.count for event in kernels)
    put(case, seconds=seconds, busy=busy / seconds, kernels=launched)
    for event in sorted(kernels, key=lambda event: -getattr(event, of))[:12]:
        share = getattr(event, of) / 1e6 / busy
        bench.report(f"  {share:6.1%}  {event.count:6d} x  {event.key[:110]}")


def precision(bench: Bench, put: Put) -> None:
    """An edit of four steps and a training step under TF32, and with channels last as well.

    They could make the sliders' float32 products and the convolutions faster.
    """
    px = bench.train_px[0]
    editor = make_editor(bench, EditorSettings(working_px=bench.px, steps=4))
    edits = [edit_number(bench, editor, n) for n in range(4)]
    _under_settings(bench, put, "edit, batch 4", partial(edited, editor, edits))
    editor.close()
    job = fullsize_job(bench.base, px, "live")
    state = assembled(bench, job, random_photos(bench, px), PlainEngine)
    _under_settings(bench, put, f"train, live, {px} px", partial(train_step, state, 0))
    state.bank.detach()


def _under_settings(bench: Bench, put: Put, case: str, function: Callable[[], Any]) -> None:
    def seconds() -> float:
        bench.once(function)  # warms up
        return min(bench.once(function) for _ in range(2))

    found = {"plain_s": seconds()}
    torch.set_float32_matmul_precision("high")
    try:
        found["tf32_s"] = seconds()
        with channels_last_format(bench.model.denoiser):
            found["channels_last_s"] = seconds()
    finally:
        torch.set_float32_matmul_precision("highest")
        put(case, **found)
