"""What `bench gpu` measures: the bare forward, training, resuming, editing, serving, compiling.

Everything through the product's own code on a base of random weights in bfloat16. A share is of
what the bare denoiser does at the same size and rows, in one forward after the other.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from bs_ray.bench.fullsize import (
    cache_samples,
    engine_maker,
    fullsize_job,
)
from bs_ray.bench.gpu import Put, Row
from bs_ray.bench.gpubase import GB, PROMPT, TRAIN_MODES, Bench, bare_forward
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
from bs_ray.train.dryrun import RowCount
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import MakeEngine
from bs_ray.train.photos import PhotoPool
from bs_ray.train.step import Parts, train_step
from bs_ray.train.watch import Watch

BATCHES = (1, 4, 8)
_TOGETHER = 8
"""Edits that come to the engine at once."""
_LOCKED = 3
"""Edits by the locked pipeline, one after the other."""
_RANK = 4


# --- the denoiser alone -----------------------------------------------------------------------
def forward(bench: Bench, put: Put) -> None:
    for rows in BATCHES:
        seconds, tflop = bench.bare(bench.px, rows)
        speed = tflop / seconds
        put(f"batch {rows}", ms=1e3 * seconds, tflop_s=speed, **bench.mfu(speed))


def channels_last(bench: Bench, put: Put) -> None:
    plain = {rows: bench.bare(bench.px, rows) for rows in BATCHES}
    with _channels_last(bench.model.denoiser):
        for rows in BATCHES:
            seconds = bench.seconds(bare_forward(bench.model, bench.px, rows))
            _against(bench, put, f"batch {rows}", seconds, plain[rows])


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
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
    prompts = Prompts(target=PROMPT, positive=f"{PROMPT}, old", negative=f"{PROMPT}, young")
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


def precision(bench: Bench, put: Put) -> None:
    """An edit of four steps and a training step under TF32, and with channels last as well.

    What these could make faster are the sliders' float32 products and the convolutions.
    """
    model, px = bench.model, bench.train_px[0]
    few = EditorSettings(working_px=bench.px, steps=4)
    edits = [_an_edit(bench, n) for n in range(4)]
    editor = Editor(model, random_sliders(model, bench.base, _TOGETHER, _RANK), few)
    _under_settings(bench, put, "edit, batch 4", partial(_edited, editor, edits))
    editor.close()
    job = fullsize_job(bench.base, px, "live")
    parts = _assembled(bench, job, _photos(bench, px), PlainEngine)
    _under_settings(bench, put, f"train, live, {px} px", partial(train_step, parts, 0))
    parts.bank.detach()


def _under_settings(bench: Bench, put: Put, case: str, function: Callable[[], Any]) -> None:
    def seconds() -> float:
        bench.once(function)  # warms up
        return min(bench.once(function) for _ in range(2))

    found = {"plain_s": seconds()}
    torch.set_float32_matmul_precision("high")
    try:
        found["tf32_s"] = seconds()
        with _channels_last(bench.model.denoiser):
            found["channels_last_s"] = seconds()
    finally:
        torch.set_float32_matmul_precision("highest")
        put(case, **found)


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
    # As many adapters as these edits name; loading one takes seconds.
    pipe = _pipeline(model, random_sliders(model, bench.base, _LOCKED + 1, _RANK))
    bench.start_peak()

    def one(number: int, steps: int) -> None:
        edit = _an_edit(bench, number)
        pipe.set_adapters(list(edit.mixes[0]), adapter_weights=list(edit.mixes[0].values()))
        pipe(
            prompt=PROMPT, image=edit.pixels[None] / np.float32(255), guidance_scale=7.5,
            strength=settings.strength, num_inference_steps=round(steps / settings.strength),
        )  # fmt: skip

    one(0, 2)  # warms up
    seconds = statistics.mean(bench.once(partial(one, n, settings.steps)) for n in range(_LOCKED))
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
    Row("locked", 12, locked),
    Row("channels_last", 6, channels_last),
    Row("precision", 12, precision),
    Row("resume ZeRO 3", 10, resume_zero_3),
    Row("train whole", 12, train_whole),
    Row("plan", 0, planned),
    Row("compile", 15, compiled),
)
"""By value: the last ones are left out first."""
