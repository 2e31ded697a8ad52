"""Text-guided generation with sliders, the paper's first setting: one seed, several strengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bs_ray.editing.editor import Editor
from bs_ray.editing.run import DenoiseRequest, EditRun, euler, run_alone
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.bank import banded
from bs_ray.sliders.slider import Slider

LATE_ACTIVATION = 0.75
"""Sliders act from this share of the noise range on, so the layout stays the base's (Gandikota et
al. 2023, section 4.1)."""


@torch.no_grad()
def begin_generating(
    editor: Editor,
    prompts: Sequence[str],
    mixes: Sequence[dict[str, float]],
    *,
    keys: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    late: float = LATE_ACTIVATION,
    beside: Sequence[Slider] = (),
) -> EditRun:
    """One picture for each prompt, mix, key and seed, before its first step.

    Raises SliderError as `Editor.strengths`, which also says what `beside` is.
    """
    model, count = editor.model, len(prompts)
    condition = model.embed([*prompts, *([""] * count)])
    gates = editor.strengths(mixes, beside).repeat(2, 1)
    last = round(late * model.prediction.num_train_timesteps) - 1
    bands = torch.tensor([[0, last]] * gates.shape[1], device=gates.device)
    noise = batch_noise(model.latent_shape, seeds, keys, 0).to(model.device)

    def ask(x: Tensor, now: int, estimate: Tensor | None) -> DenoiseRequest:
        """Told and untold rows share a pass."""
        t = torch.full((2 * count,), now, device=x.device)
        return DenoiseRequest(x.repeat(2, 1, 1, 1), t, condition, banded(gates, t, bands), estimate)

    def guided(prediction: Tensor) -> Tensor:
        cond, uncond = prediction.chunk(2)
        return model.guide(cond, uncond, guidance_scale)

    times = model.prediction.timesteps(steps)
    drawing = euler(model.prediction, noise, times, ask, guided)
    return EditRun(drawing, list(editor.moved(mixes).values()))


def pictures(editor: Editor, latents: Tensor) -> Tensor:
    """Latents -> pictures [B, 3, H, W] in [-1, 1], on the CPU."""
    with torch.no_grad():
        return editor.model.decode(latents).clamp(-1, 1).cpu()


def generate(
    editor: Editor,
    prompts: Sequence[str],
    mixes: Sequence[Sequence[dict[str, float]]],
    *,
    keys: Sequence[str],
    seed: int,
    steps: int,
    guidance_scale: float,
    late: float = LATE_ACTIVATION,
) -> Tensor:
    """Pictures [P, K, 3, H, W] in [-1, 1]: every prompt under each of its K mixes.

    A prompt's pictures share their noise, which its key and the seed fix. `late`: sliders act
    below this share of the noise range; 1 is always. Raises SliderError as `Editor.strengths`.
    """
    count = len(mixes[0])
    run = begin_generating(
        editor,
        [prompt for prompt in prompts for _ in range(count)],
        [mix for row in mixes for mix in row],
        keys=[key for key in keys for _ in range(count)],
        seeds=[seed] * (len(prompts) * count),
        steps=steps,
        guidance_scale=guidance_scale,
        late=late,
    )
    latents = run_alone(run, editor.predict)
    return pictures(editor, latents).unflatten(0, (len(prompts), count))
