"""Edits by the Editor, by the server's batcher, and by a locked pipeline of diffusers."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from bs_ray.bench.gpu.base import PROMPT, Bench
from bs_ray.bench.gpu.forward import BATCHES
from bs_ray.bench.gpu.run import Put
from bs_ray.config import EditorSettings
from bs_ray.editing.editor import Edit, Editor, outputs_of
from bs_ray.serve.engine.batcher import Batcher
from bs_ray.serve.engine.tasks import EditTask, Result
from bs_ray.sliders.slider import Slider
from bs_ray.testing import edit_of, random_slider

TOGETHER = 8
"""Edits that come to the server at once."""
RANK = 4

_LOCKED = 3
"""Edits by the locked pipeline, one after the other."""


def make_editor(bench: Bench, settings: EditorSettings, **options: Any) -> Editor:
    """An Editor over the base with TOGETHER sliders of random weights. Close it after use."""
    return Editor(bench.model, _sliders(bench, TOGETHER), settings, **options)


def _sliders(bench: Bench, count: int) -> list[Slider]:
    return [random_slider(bench.model, f"slider{i}", seed=i, rank=RANK) for i in range(count)]


def edit(bench: Bench, put: Put) -> None:
    """The fast preset by the Editor, each photo with two sliders of its own."""
    # Each step is a forward of two rows a photo: the source branch and the edited one.
    bare_s = {batch: bench.bare(bench.px, 2 * batch)[0] for batch in BATCHES}
    settings = EditorSettings(working_px=bench.px)
    editor = make_editor(bench, settings)
    few = settings.model_copy(update={"steps": 1})
    try:
        for batch in BATCHES:
            bench.start_peak()
            edits = [edit_number(bench, editor, n) for n in range(batch)]
            warm = [replace(edit, settings=few) for edit in edits]
            try:
                edited(editor, warm)
                seconds = bench.once(partial(edited, editor, edits))
            except torch.OutOfMemoryError as error:
                put(f"batch {batch}", out_of_memory=str(error).partition(". ")[0])
                continue
            put(
                f"batch {batch}",
                s_a_photo=seconds / batch,
                photos_s=batch / seconds,
                share=settings.steps * bare_s[batch] / seconds,
                peak_gb=bench.peak_gb(),
            )
        _vae(bench, put)
    finally:
        editor.close()


def edited(editor: Editor, edits: Sequence[Edit]) -> None:
    for outcome in editor.edit(edits):
        outputs_of(outcome)


def _vae(bench: Bench, put: Put) -> None:
    """What decoding and encoding cost of an edit."""
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


def edit_number(bench: Bench, editor: Editor, number: int, **options: Any) -> Edit:
    """Edit `number` has sliders `number` and the next one, at strengths of its own."""
    key, photo = f"photo{number}", bench.photo(number)
    return edit_of(editor, key, photo, _strengths(number), seed=number, **options)


def _strengths(number: int) -> dict[str, float]:
    names = [f"slider{(number + i) % TOGETHER}" for i in range(2)]
    return {names[0]: 0.5 + 0.1 * number, names[1]: -0.5}


class _StepTimes:
    """A watcher of the batcher that keeps how long steps took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def stepped(self, rows: int, seconds: float) -> None:
        self.seconds.append(seconds)

    def queued(self, seconds: float) -> None: ...
    def finished(self, outcome: Any) -> None: ...
    def occupancy(self, running: int, waiting: int) -> None: ...


def serve(bench: Bench, put: Put) -> None:
    """Edits that come at once, as many as the batcher takes, each with other sliders."""
    settings = EditorSettings(working_px=bench.px)
    bare_s = settings.steps * bench.bare(bench.px, 2 * TOGETHER)[0]
    bench.start_peak()
    editor = make_editor(bench, settings, slots=settings.resident_sliders, rank=RANK)
    sliders = dict(editor.sliders)
    steps = _StepTimes()

    async def together(settings: EditorSettings) -> list[Result]:
        edits = [edit_number(bench, editor, n, settings=settings) for n in range(TOGETHER)]
        batcher = Batcher(editor, steps, max_rows=TOGETHER, max_waiting=TOGETHER)

        async def one(number: int) -> Result:
            task = EditTask(edits=[edits[number]], within_s=3600)
            moving = {name: sliders[name] for name in edits[number].mixes[0].strengths}
            async for event in batcher.submit(task, moving):
                if isinstance(event, Result):
                    return event
            raise RuntimeError("the batcher ended without a result")

        return await asyncio.gather(*(one(n) for n in range(TOGETHER)))

    try:
        asyncio.run(together(settings.model_copy(update={"steps": 1})))  # warms up
        steps.seconds.clear()
        results: list[Result] = []
        seconds = bench.once(lambda: results.extend(asyncio.run(together(settings))))
    finally:
        editor.close()
    put(
        f"{TOGETHER} at once",
        photos_s=TOGETHER / seconds,
        share=bare_s / seconds,
        ms_a_step=1e3 * statistics.median(steps.seconds),
        company=statistics.mean(result.batch_rows for result in results),
        peak_gb=bench.peak_gb(),
    )


def locked(bench: Bench, put: Put) -> None:
    """The server that a user would write: one pipeline, with set_adapters before every edit.

    Guided img2img has as many evaluations as a fast edit of bs_ray. It leaves adapters in the base,
    so that other rows cannot use it.
    """
    settings = EditorSettings(working_px=bench.px)
    bare_s = settings.steps * bench.bare(bench.px, 2)[0]
    # Only as many adapters as these edits name, since loading one takes seconds.
    pipe = _pipeline(bench.model, _sliders(bench, _LOCKED + 1))
    bench.start_peak()

    def one(number: int, steps: int) -> None:
        strengths = _strengths(number)
        pipe.set_adapters(list(strengths), adapter_weights=list(strengths.values()))
        pipe(
            prompt=PROMPT,
            image=bench.photo(number)[None] / np.float32(255),
            guidance_scale=7.5,
            strength=settings.start,
            num_inference_steps=round(steps / settings.start),
        )

    one(0, 2)  # warms up
    seconds = statistics.mean(bench.once(partial(one, n, settings.steps)) for n in range(_LOCKED))
    put("one by one", photos_s=1 / seconds, share=bare_s / seconds, peak_gb=bench.peak_gb())
    bench.fresh()


def _pipeline(model: Any, sliders: Sequence[Slider]) -> Any:
    """The img2img pipeline of diffusers over the same networks, with the sliders as adapters."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
    from diffusers.utils import logging
    from safetensors.torch import load

    logging.set_verbosity_error()  # sliders have no keys of the text encoders
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=model.vae,
        unet=model.unet,
        add_watermarker=False,
        text_encoder=model.text_encoders[0],
        text_encoder_2=model.text_encoders[1],
        tokenizer=model.tokenizers[0],
        tokenizer_2=model.tokenizers[1],
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    for slider in sliders:
        pipe.load_lora_weights(load(slider.to_bytes()), adapter_name=slider.card.name)
    return pipe
