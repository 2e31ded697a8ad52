"""Text-guided generation with sliders, the paper's first setting: one seed, several strengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bs_ray.editing.editor import Editor
from bs_ray.editing.steps import Going, Query, Steps, advance
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.artifact import Slider
from bs_ray.sliders.bank import banded

LATE_ACTIVATION = 0.75
"""Sliders act from this share of the noise range on, so the layout stays the base's (Gandikota et
al. 2023, section 4.1)."""


class Drawing(Going):
    """Pictures on their way from noise."""

    def __init__(self, steps: Steps, sliders: Sequence[Slider], rows: int):
        super().__init__(steps)
        self.sliders, self.rows = sliders, rows


@torch.no_grad()
def begin_drawing(
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
) -> Drawing:
    """One picture for each prompt, mix, key and seed, before its first step.

    Raises SliderError as `Editor.strengths`, which also says what `beside` is.
    """
    model, count = editor.model, len(prompts)
    condition = model.embed([*prompts, *([""] * count)])
    gates = editor.strengths(mixes, beside).repeat(2, 1)
    last = round(late * model.prediction.num_train_timesteps) - 1
    bands = torch.tensor([[0, last]] * gates.shape[1], device=gates.device)
    noise = batch_noise(model.latent_shape, seeds, keys, 0).to(model.device)

    def draw() -> Steps:
        kind, x = model.prediction, noise
        estimate = torch.zeros_like(x)
        times = kind.timesteps(steps)
        for now, then in zip(times, [*times[1:], None], strict=True):
            t = torch.full((count,), now, device=x.device)
            both = t.repeat(2)
            acting = banded(gates, both, bands)
            read = yield Query(x.repeat(2, 1, 1, 1), both, condition, acting, estimate)
            told, untold = read.chunk(2)
            predicted = model.guide(told, untold, guidance_scale)
            estimate = kind.to_x0(x, predicted, t)
            x = kind.step(x, predicted, t, None if then is None else torch.full_like(t, then))
        return x

    return Drawing(draw(), list(editor.moved(mixes).values()), count)


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
    going = begin_drawing(
        editor,
        [prompt for prompt in prompts for _ in range(count)],
        [mix for row in mixes for mix in row],
        keys=[key for key in keys for _ in range(count)],
        seeds=[seed] * (len(prompts) * count),
        steps=steps,
        guidance_scale=guidance_scale,
        late=late,
    )
    while going.query:
        advance([going], editor.predict)
    assert going.latents is not None
    return pictures(editor, going.latents).unflatten(0, (len(prompts), count))
