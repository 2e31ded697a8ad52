"""The base that `bench gpu` measures, and its instruments: clock, memory, the bare forward."""

from __future__ import annotations

import gc
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bs_ray.bench.fullsize import (
    PEAK_TFLOPS,
    device_name,
    fullsize_job,
    peak_bytes,
    random_base,
    reset_peak,
)
from bs_ray.bench.gpu.run import Report
from bs_ray.models.base import DiffusionModel
from bs_ray.train.losses import Features
from bs_ray.train.planning.dry_run import FUSED_ATTENTION
from bs_ray.train.planning.plan import plan

GB = 1e9
PROMPT = "a photo of a person"
TRAIN_MODES = ("live", "cached", "whole_method")
_SECONDS = 1.0
"""How long a forward is repeated for one figure."""


@dataclass
class Bench:
    """The base under measurement and what is known of the machine."""

    base: str
    px: int
    device: str
    report: Report
    workers: ProcessPoolExecutor
    plans: dict[tuple[int, str], Future[int]] = field(default_factory=dict)
    """(px, mode) -> the bytes of memory that the plan expects of training."""
    peaks: dict[tuple[int, str], float] = field(default_factory=dict)
    """(px, mode) -> the GB of memory that training took."""
    held_before: int = 0
    """Bytes that the process held before it loaded the base; 0 on a GPU."""
    _bare_s: dict[tuple[int, int], float] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, base: str, px: int, device: str, report: Report) -> Iterator[Bench]:
        """A bench for the `with` block."""
        # Without it cuBLAS is not repeatable; cuBLAS reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        for kind in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        count = max(1, min(6, (os.cpu_count() or 1) // 2))
        workers = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
        bench = cls(base, px, device, report, workers)
        try:
            yield bench
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            bench.fresh()

    @property
    def train_px(self) -> tuple[int, ...]:
        """Sides of the training pictures: half the side of the edited photos, and the same side."""
        return (max(64, self.px // 2), self.px) if self.px > 64 else (self.px,)

    def about(self) -> dict[str, Any]:
        """The device's name and the libraries' versions."""
        names = ("torch", "diffusers", "transformers", "deepspeed")
        return {"device": device_name(self.device)} | {name: _version(name) for name in names}

    # --- the base -----------------------------------------------------------------------------
    @cached_property
    def _loaded(self) -> tuple[DiffusionModel, Features]:
        start = time.perf_counter()
        gc.collect()
        reset_peak(self.device)
        if self.device == "cpu":
            self.held_before = peak_bytes(self.device)
        found = random_base(self.base, self.device)
        self.sync()
        self.report(f"random weights in {time.perf_counter() - start:.1f} s")
        return found

    @property
    def model(self) -> DiffusionModel:
        """The base, which is made at first use."""
        return self._loaded[0]

    @property
    def features(self) -> Features:
        """The features of the perceptual loss."""
        return self._loaded[1]

    def fresh(self) -> None:
        """Drop the base: the next row gets another one."""
        self.__dict__.pop("_loaded", None)
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    # --- the clock and the memory -------------------------------------------------------------
    def sync(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any]) -> float:
        """Seconds of one call: the mean of calls for about _SECONDS, after a warm-up."""
        function()
        self.sync()
        start = time.perf_counter()
        function()
        self.sync()
        once = time.perf_counter() - start
        count = max(1, min(50, round(_SECONDS / once)))
        start = time.perf_counter()
        for _ in range(count):
            function()
        self.sync()
        return (time.perf_counter() - start) / count

    def once(self, function: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.sync()
        start = time.perf_counter()
        function()
        self.sync()
        return time.perf_counter() - start

    def start_peak(self) -> None:
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
        reset_peak(self.device)

    def peak_gb(self) -> float:
        """The most memory since `start_peak`, with the base's own."""
        return (peak_bytes(self.device) - self.held_before) / GB

    def start_plans(self) -> None:
        """Start planning all training that is measured here, in other processes."""
        for px in self.train_px:
            for mode in TRAIN_MODES:
                if (px, mode) not in self.plans:
                    future = self.workers.submit(_planned, self.base, px, mode)
                    self.plans[px, mode] = future

    def trace(self) -> None:
        """Report where the error that is being handled came from."""
        self.report("".join(traceback.format_exc(limit=-4)))

    def mfu(self, tflop_s: float) -> dict[str, float]:
        """The share of the GPU's peak by its data sheet, where that is known."""
        peak = next((v for k, v in PEAK_TFLOPS.items() if k in device_name(self.device)), None)
        return {"mfu": tflop_s / peak} if peak else {}

    # --- the bare forward ---------------------------------------------------------------------
    def bare(self, px: int, rows: int) -> tuple[float, float]:
        """(seconds, TFLOP) of one forward of the denoiser alone at `rows` rows."""
        forward = bare_forward(self.model, px, rows)
        if (px, rows) not in self._bare_s:
            self._bare_s[px, rows] = self.seconds(forward)
        return self._bare_s[px, rows], self.tflop(px) * rows

    def tflop(self, px: int) -> float:
        """10^12 operations of one forward of one row."""
        key = (px, 0)
        if key not in self._bare_s:
            self._bare_s[key] = _flop(bare_forward(self.model, px, 1)) / 1e12
        return self._bare_s[key]

    def photo(self, seed: int) -> np.ndarray:
        """A photo of noise, uint8 [px, px, 3]."""
        return np.random.default_rng(seed).integers(0, 256, (self.px, self.px, 3), dtype=np.uint8)


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "absent"


def _planned(base: str, px: int, mode: str) -> int:
    """Bytes of the plan, without the photos of a whole run: the bench has two."""
    made = plan(fullsize_job(base, px, mode), dtype=torch.bfloat16)
    return made.total - made.memory[0]["photo latents"]


def bare_forward(model: DiffusionModel, px: int, rows: int) -> Callable[[], Any]:
    """The denoiser itself with what `model.predict` gives it, ready on the device."""
    taken: list[tuple[tuple, dict]] = []

    def take(network: nn.Module, args: tuple, kwargs: dict) -> None:
        taken.append((args, kwargs))

    channels, height, _ = model.latent_shape
    side = height * px // model.native_px
    x = torch.randn(rows, channels, side, side, device=model.device)
    t = torch.full((rows,), 500, device=model.device)
    hook = model.denoiser.register_forward_pre_hook(take, with_kwargs=True)
    with torch.no_grad():
        model.predict(x, t, model.embed([PROMPT] * rows))
    hook.remove()
    args, kwargs = taken[0]

    def forward() -> Any:
        with torch.no_grad():
            return model.denoiser(*args, **kwargs)

    return forward


def _flop(function: Callable[[], Any]) -> float:
    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return sdpa_flop_count(query, key, value)

    with FlopCounterMode(display=False, custom_mapping={FUSED_ATTENTION: attention}) as counter:
        function()
    return float(counter.get_total_flops())
