"""Text-guided generation with sliders, the paper's first setting: one seed, several strengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bs_ray.editing.editor import Editor
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import sample_euler
from bs_ray.sliders.bank import banded

LATE_ACTIVATION = 0.75
"""Sliders act from this share of the noise range on, so the layout stays the base's (Gandikota et
al. 2023, section 4.1)."""


@torch.no_grad()
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
    model, count = editor.model, len(mixes[0])
    gates = editor.strengths([mix for row in mixes for mix in row]).repeat(2, 1)
    last = round(late * model.prediction.num_train_timesteps) - 1
    bands = torch.tensor([[0, last]] * gates.shape[1], device=gates.device)

    def forward(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return editor.predict(x_t, t, condition, banded(gates, t, bands))

    latents = sample_euler(
        model,
        [prompt for prompt in prompts for _ in range(count)],
        [key for key in keys for _ in range(count)],
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        rows_forward=forward,
    )
    return model.decode(latents).clamp(-1, 1).cpu().unflatten(0, (len(prompts), count))
