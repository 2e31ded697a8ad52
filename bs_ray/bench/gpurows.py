"""What `bench gpu` measures: the bare forward, training, resuming, editing, serving, compiling.

Everything through the product's own code on a base of random weights in bfloat16. A share is of
what the bare denoiser does at the same size and rows, in one forward after the other.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bs_ray.bench.fullsize import (
    PEAK_TFLOPS,
    cache_samples,
    device_name,
    engine_maker,
    fullsize_job,
    peak_bytes,
    random_base,
    reset_peak,
)
from bs_ray.bench.gpu import Put, Row, Say
from bs_ray.config import EditorSettings, Prompts, TrainJob
from bs_ray.editing.editor import Edit, Editor, outputs_of
from bs_ray.models.base import DiffusionModel
from bs_ray.models.judges import Judging
from bs_ray.serve.engine import Engine
from bs_ray.serve.tasks import EditTask, Result
from bs_ray.sliders.artifact import Card, Slider
from bs_ray.sliders.bank import SliderBank
from bs_ray.train import checkpoint, loop
from bs_ray.train.checkpoint import Progress
from bs_ray.train.dryrun import FUSED_ATTENTION, RowCount
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import MakeEngine
from bs_ray.train.losses import Features
from bs_ray.train.photos import PhotoPool
from bs_ray.train.plan import plan
from bs_ray.train.step import Parts, train_step
from bs_ray.train.watch import Watch

BATCHES = (1, 4, 8)
TRAIN_MODES = ("live", "cached", "whole_method")
GB = 1e9
_PROMPT = "a photo of a person"
_TOGETHER = 8
_RANK = 4
_SECONDS = 1.0
"""How long a forward is repeated for one figure."""


@dataclass
class Bench:
    """The base under measurement and what is known of the machine."""

    base: str
    px: int
    device: str
    say: Say
    workers: ProcessPoolExecutor
    plans: dict[tuple[int, str], Future[int]] = field(default_factory=dict)
    """Bytes of training's memory as planned, by px and mode."""
    peaks: dict[tuple[int, str], float] = field(default_factory=dict)
    """GB of the same as measured."""
    held_before: int = 0
    """Bytes that the process held before the base was there; on a GPU nothing."""
    _bare_s: dict[tuple[int, int], float] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, base: str, px: int, device: str, say: Say) -> Iterator[Bench]:
        """A bench for as long as its rows are measured."""
        # cuBLAS is repeatable only with this, which it reads when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        for kind in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        count = max(1, min(6, (os.cpu_count() or 1) // 2))
        workers = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
        bench = cls(base, px, device, say, workers)
        try:
            yield bench
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            bench.fresh()

    @property
    def train_px(self) -> tuple[int, ...]:
        """Sides of the training pictures: half the edited photos', and theirs."""
        return (max(64, self.px // 2), self.px) if self.px > 64 else (self.px,)

    def about(self) -> dict[str, Any]:
        """The machine, in words."""
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
        self.say(f"random weights in {time.perf_counter() - start:.1f} s")
        return found

    @property
    def model(self) -> DiffusionModel:
        """The base, made when first asked for."""
        return self._loaded[0]

    @property
    def features(self) -> Features:
        """Those of the perceptual loss."""
        return self._loaded[1]

    def fresh(self) -> None:
        """Let go of the base: the next row gets another one."""
        self.__dict__.pop("_loaded", None)
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    # --- the clock and the memory -------------------------------------------------------------
    def sync(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any]) -> float:
        """Of one call: the mean over about _SECONDS of them, one after the other, warmed up."""
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
        """Most memory since `start_peak`, the base's own included."""
        return (peak_bytes(self.device) - self.held_before) / GB

    def start_plans(self) -> None:
        """Plan all training that is measured here, in other processes, meanwhile."""
        for px in self.train_px:
            for mode in TRAIN_MODES:
                if (px, mode) not in self.plans:
                    future = self.workers.submit(_planned, self.base, px, mode)
                    self.plans[px, mode] = future

    def trace(self) -> None:
        """Where the error that is being handled came from."""
        self.say("".join(traceback.format_exc(limit=-4)))

    def mfu(self, tflop_s: float) -> dict[str, float]:
        """Share of the card's data sheet, where that is known."""
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
        model.predict(x, t, model.embed([_PROMPT] * rows))
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


# --- the denoiser alone -----------------------------------------------------------------------
def forward(bench: Bench, put: Put) -> None:
    for rows in BATCHES:
        seconds, tflop = bench.bare(bench.px, rows)
        speed = tflop / seconds
        put(f"batch {rows}", ms=1e3 * seconds, tflop_s=speed, **bench.mfu(speed))


def channels_last(bench: Bench, put: Put) -> None:
    network = bench.model.denoiser
    plain = {rows: bench.bare(bench.px, rows) for rows in BATCHES}
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        for rows in BATCHES:
            seconds = bench.seconds(bare_forward(bench.model, bench.px, rows))
            _against(bench, put, f"batch {rows}", seconds, plain[rows])
    finally:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def compiled(bench: Bench, put: Put) -> None:
    """Its repeated blocks, which are most of it: the whole takes minutes to compile."""
    model = bench.model
    plain = {rows: bench.bare(bench.px, rows) for rows in (1, 4)}
    try:
        model.denoiser.compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
        for rows in (1, 4):
            start = time.perf_counter()
            forward = bare_forward(model, bench.px, rows)  # whose one forward compiles
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


# --- training ---------------------------------------------------------------------------------
def train_half(bench: Bench, put: Put) -> None:
    _train(bench, put, bench.train_px[0])


def train_whole(bench: Bench, put: Put) -> None:
    _train(bench, put, bench.train_px[-1])


def _train(bench: Bench, put: Put, px: int) -> None:
    """Steps of every mode by plain torch."""
    photos = _photos(bench, px)
    bench.start_plans()
    for mode in TRAIN_MODES:
        bench.start_peak()
        parts = _assembled(bench, fullsize_job(bench.base, px, mode), photos, PlainEngine)
        train_step(parts, 0)  # warms up
        count = RowCount(bench.model.denoiser)
        steps = [bench.once(partial(train_step, parts, step)) for step in range(1, 4)]
        count.close()
        peak = bench.peak_gb()
        parts.bank.detach()
        bench.peaks[px, mode] = peak
        size, rows = parts.job.batch_size, count.rows / len(steps)
        seconds = statistics.median(steps)
        bare_s, bare_tflop = bench.bare(px, size)
        speed = rows * bare_tflop / size / seconds
        put(
            f"{mode}, {px} px", s_a_sample=seconds / size, forwards_a_sample=rows / size,
            tflop_s=speed, **bench.mfu(speed), share=speed / (bare_tflop / bare_s), peak_gb=peak,
        )  # fmt: skip


def planned(bench: Bench, put: Put) -> None:
    """The product's own plans against what `train` took."""
    for (px, mode), peak in bench.peaks.items():
        expected = bench.plans[px, mode].result() / GB
        put(f"{mode}, {px} px", plan_gb=expected, peak_gb=peak, plan_over_peak=expected / peak)


def _photos(bench: Bench, px: int) -> PhotoPool:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, px, px), generator=rng).to(torch.uint8)
    return PhotoPool(["a", "b"], pixels, bench.model)


def _assembled(bench: Bench, job: TrainJob, photos: PhotoPool, make_engine: MakeEngine) -> Parts:
    features = bench.features if job.losses.perceptual else None
    samples = cache_samples(job, bench.model, photos)
    return loop.assemble(job, bench.model, photos, features, make_engine, samples=samples)


# --- resuming ---------------------------------------------------------------------------------
def resume_torch(bench: Bench, put: Put) -> None:
    _resume(bench, put, "torch", PlainEngine)


def resume_zero_0(bench: Bench, put: Put) -> None:
    _resume(bench, put, "ZeRO 0", engine_maker(bench.model, 0))


def resume_zero_2(bench: Bench, put: Put) -> None:
    _resume(bench, put, "ZeRO 2", engine_maker(bench.model, 2))


def resume_zero_3(bench: Bench, put: Put) -> None:
    """The frozen denoiser is sharded as well, so that the base is of no use to other rows."""
    _resume(bench, put, "ZeRO 3", engine_maker(bench.model, 3))
    bench.fresh()


def _resume(bench: Bench, put: Put, name: str, make_engine: MakeEngine) -> None:
    """Step, save, step; then from what was saved, with new objects, the second step again.

    apart: how far the two second steps end from each other, in lengths of such a step.
    """
    px = bench.train_px[0]
    job, photos = fullsize_job(bench.base, px, "whole_method"), _photos(bench, px)
    bench.start_peak()
    with _repeatable(), tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch, "saved")

        def keep(_: dict[str, float], folder: Path | None) -> None:
            assert folder
            shutil.copytree(folder, saved)

        parts = _assembled(bench, job, photos, make_engine)
        first_s = bench.once(lambda: train_step(parts, 0))
        save_s = bench.once(lambda: loop.save(parts, Progress(step=1), {}, keep))
        before = _weights(parts)
        seconds = bench.once(lambda: train_step(parts, 1))
        put(name, s_a_step=seconds, first_s=first_s, save_s=save_s, peak_gb=bench.peak_gb())
        expected = _weights(parts)
        parts.bank.detach()
        del parts
        gc.collect()

        parts = _assembled(bench, job, photos, make_engine)
        resume_s = bench.once(lambda: loop.resume(parts, saved))
        train_step(parts, checkpoint.read(saved, job)[0].step)
        found = _weights(parts)
        parts.bank.detach()
    same = all(torch.equal(found[key], expected[key]) for key in expected)
    step = _distance(expected, before)
    put(name, resume_s=resume_s, bit_equal=same, apart=_distance(found, expected) / step)


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[key] - b[key]).square().sum()) for key in a) ** 0.5


def _weights(parts: Parts) -> dict[str, Tensor]:
    engines = {"slider": parts.student, "discriminator": parts.discriminator}
    return {
        f"{name}/{key}": weight.detach().float().cpu().clone()
        for name, engine in engines.items()
        if engine
        for key, weight in engine.named_full_parameters().items()
    }


@contextmanager
def _repeatable() -> Iterator[None]:
    """Kernels that give the same sums every time, where there are such."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def preview(bench: Bench, put: Put) -> None:
    """A preview, whose effect is averaged over the workers by the GPUs' own process group."""
    px = bench.train_px[0]
    job = fullsize_job(bench.base, px, "live")
    parts = _assembled(bench, job, _photos(bench, px), engine_maker(bench.model, 2))
    with torch.no_grad():
        for up in parts.bank.up.values():
            up.normal_(std=0.01)
    bench.start_peak()
    watch = Watch(parts, Judging(), mock.Mock())
    # One card cannot be two workers: say there are two, and the reduction runs, of one.
    with mock.patch("torch.distributed.get_world_size", return_value=2):
        seconds = bench.once(lambda: watch.after_step(Progress(step=job.steps), {}))
    put(f"{px} px", seconds=seconds, peak_gb=bench.peak_gb(), **watch.shown)
    parts.bank.detach()


def profiled(bench: Bench, put: Put) -> None:
    """Where the time of a step goes: what the device does, and how long it takes in all.

    busy: the kernels' time over the whole step's, as it is without the profiler; what is missing
    to 1 the device waits for Python.
    """
    px = bench.train_px[0]
    parts = _assembled(bench, fullsize_job(bench.base, px, "live"), _photos(bench, px), PlainEngine)
    _profile(bench, put, f"train, live, {px} px", partial(train_step, parts, 0))
    parts.bank.detach()
    settings = EditorSettings(working_px=bench.px, steps=1)
    editor = Editor(bench.model, random_sliders(bench.model, bench.base, 8, _RANK), settings)
    edits = [_an_edit(bench, n) for n in range(4)]
    _profile(bench, put, "edit of one step, batch 4", partial(_edited, editor, edits))
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
        bench.say(f"  {share:6.1%}  {event.count:6d} x  {event.key[:110]}")


# --- editing ----------------------------------------------------------------------------------
def random_sliders(model: DiffusionModel, base: str, count: int, rank: int) -> list[Slider]:
    """Sliders of random factors, in the product's own layers, that move pictures a little."""
    names = [f"slider{i}" for i in range(count)]
    bank = SliderBank.trainable(names, model.denoiser, model.slider_targets(), rank, rank, seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for up in bank.up.values():
            up.normal_(std=0.01, generator=rng)
    prompts = Prompts(target=_PROMPT, positive=f"{_PROMPT}, old", negative=f"{_PROMPT}, young")
    about = {"base": base, "base_id": model.base_id, "rank": rank, "prompts": prompts}
    return [bank.to_slider(Card(name=name, **about)) for name in names]


def edit(bench: Bench, put: Put) -> None:
    """The fast preset by the Editor, each photo with two sliders of its own."""
    model = bench.model
    # Each step is a forward of two rows a photo: its own, and the moved one.
    bare_s = {batch: bench.bare(bench.px, 2 * batch)[0] for batch in BATCHES}
    settings = EditorSettings(working_px=bench.px)
    editor = Editor(model, random_sliders(model, bench.base, _TOGETHER, _RANK), settings)
    few = settings.model_copy(update={"steps": 1})
    try:
        for batch in BATCHES:
            bench.start_peak()
            edits = [_an_edit(bench, n) for n in range(batch)]
            warm = [Edit(e.key, e.pixels, e.mixes, settings=few) for e in edits]
            try:
                _edited(editor, warm)
                seconds = bench.once(partial(_edited, editor, edits))
            except torch.OutOfMemoryError as error:
                put(f"batch {batch}", out_of_memory=str(error).partition(". ")[0])
                continue
            put(
                f"batch {batch}", s_a_photo=seconds / batch, photos_s=batch / seconds,
                share=settings.steps * bare_s[batch] / seconds, peak_gb=bench.peak_gb(),
            )  # fmt: skip
        _vae(bench, put)
    finally:
        editor.close()


def _edited(editor: Editor, edits: Sequence[Edit]) -> None:
    for outcome in editor.edit(edits):
        outputs_of(outcome)


def _vae(bench: Bench, put: Put) -> None:
    """What decoding and encoding cost of that."""
    model, batch = bench.model, BATCHES[-1]
    channels, height, _ = model.latent_shape
    side = height * bench.px // model.native_px
    bench.start_peak()
    with torch.no_grad():
        latents = torch.randn(batch, channels, side, side, device=model.device)
        decode_s = bench.once(lambda: model.decode(latents))
        images = torch.zeros(batch, 3, bench.px, bench.px, device=model.device)
        encode_s = bench.once(lambda: model.encode(images))
    put(f"VAE, batch {batch}", decode_s=decode_s, encode_s=encode_s, peak_gb=bench.peak_gb())


def _an_edit(bench: Bench, number: int) -> Edit:
    """Edit `number` has sliders `number` and the next one, at strengths of its own."""
    names = [f"slider{(number + i) % _TOGETHER}" for i in range(2)]
    mix = {names[0]: 0.5 + 0.1 * number, names[1]: -0.5}
    return Edit(f"photo{number}", bench.photo(number), [mix], seed=number)


# --- serving ----------------------------------------------------------------------------------
class _Steps:
    """The engine's watcher here: how long steps took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def stepped(self, rows: int, seconds: float) -> None:
        self.seconds.append(seconds)

    def queued(self, seconds: float) -> None: ...
    def finished(self, outcome: Any) -> None: ...
    def occupancy(self, running: int, waiting: int) -> None: ...


def engine(bench: Bench, put: Put) -> None:
    """Edits that come at once, as many as the engine takes, each with other sliders."""
    model, settings = bench.model, EditorSettings(working_px=bench.px)
    bare_s = settings.steps * bench.bare(bench.px, 2 * _TOGETHER)[0]
    sliders = random_sliders(model, bench.base, _TOGETHER, _RANK)
    bench.start_peak()
    editor = Editor(model, sliders, settings, slots=settings.resident_sliders, rank=_RANK)
    steps = _Steps()

    async def together(settings: EditorSettings) -> list[Result]:
        served = Engine(editor, steps, max_rows=_TOGETHER, max_waiting=_TOGETHER)

        async def one(number: int) -> Result:
            edit = _an_edit(bench, number)
            edit = Edit(edit.key, edit.pixels, edit.mixes, edit.seed, settings=settings)
            by_name = {name: editor_sliders[name] for name in edit.mixes[0]}
            task = EditTask(edit=edit, sliders=list(by_name), within_s=3600)
            async for event in served.submit(task, by_name):
                if isinstance(event, Result):
                    return event
            raise RuntimeError("the engine ended without a result")

        return await asyncio.gather(*(one(n) for n in range(_TOGETHER)))

    editor_sliders = {slider.card.name: slider for slider in sliders}
    try:
        asyncio.run(together(settings.model_copy(update={"steps": 1})))  # warms up
        steps.seconds.clear()
        results: list[Result] = []
        seconds = bench.once(lambda: results.extend(asyncio.run(together(settings))))
    finally:
        editor.close()
    put(
        f"{_TOGETHER} at once", photos_s=_TOGETHER / seconds, share=bare_s / seconds,
        ms_a_step=1e3 * statistics.median(steps.seconds),
        company=statistics.mean(result.batch_rows for result in results), peak_gb=bench.peak_gb(),
    )  # fmt: skip


def locked(bench: Bench, put: Put) -> None:
    """The server that a user would write: one pipeline, set_adapters before every edit.

    As many evaluations as a fast edit of ours: guided img2img, twice its steps. Leaves adapters in
    the base, which is of no use to other rows.
    """
    model, settings = bench.model, EditorSettings(working_px=bench.px)
    bare_s = settings.steps * bench.bare(bench.px, 2)[0]
    pipe = _pipeline(model, random_sliders(model, bench.base, _TOGETHER, _RANK))
    bench.start_peak()

    def one(number: int, steps: int) -> None:
        edit = _an_edit(bench, number)
        pipe.set_adapters(list(edit.mixes[0]), adapter_weights=list(edit.mixes[0].values()))
        pipe(
            prompt=_PROMPT, image=edit.pixels[None] / np.float32(255), guidance_scale=7.5,
            strength=settings.strength, num_inference_steps=round(steps / settings.strength),
        )  # fmt: skip

    one(0, 2)  # warms up
    seconds = statistics.mean(bench.once(partial(one, n, settings.steps)) for n in range(3))
    put("one by one", photos_s=1 / seconds, share=bare_s / seconds, peak_gb=bench.peak_gb())
    bench.fresh()


def _pipeline(model: Any, sliders: Sequence[Slider]) -> Any:
    """diffusers' img2img around the same networks, with the sliders as adapters."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
    from diffusers.utils import logging
    from safetensors.torch import load

    logging.set_verbosity_error()  # sliders have no keys of the text encoders
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=model.vae, unet=model.unet, add_watermarker=False,
        text_encoder=model.text_encoders[0], text_encoder_2=model.text_encoders[1],
        tokenizer=model.tokenizers[0], tokenizer_2=model.tokenizers[1],
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    for slider in sliders:
        pipe.load_lora_weights(load(slider.to_bytes()), adapter_name=slider.card.name)
    return pipe


ROWS: tuple[Row, ...] = (
    Row("bare forward", 6, forward),
    Row("train", 12, train_half),
    Row("resume torch", 6, resume_torch),
    Row("resume ZeRO 0", 8, resume_zero_0),
    Row("resume ZeRO 2", 6, resume_zero_2),
    Row("edit", 12, edit),
    Row("engine", 10, engine),
    Row("preview", 6, preview),
    Row("profile", 6, profiled),
    Row("channels_last", 6, channels_last),
    Row("locked", 12, locked),
    Row("resume ZeRO 3", 10, resume_zero_3),
    Row("train whole", 12, train_whole),
    Row("plan", 0, planned),
    Row("compile", 15, compiled),
)
"""By value: the last ones are left out first."""
