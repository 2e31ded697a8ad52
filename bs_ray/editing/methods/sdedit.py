"""SDEdit (Meng et al. 2022): noise the photo, then denoise it with the sliders on.

The baseline that every slider user knows, as diffusers' img2img. It does not return the photo at
strength 0.
"""

from __future__ import annotations

from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.run import EditGenerator, euler


def sdedit(context: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents [T, C, h, w] by DDIM (eta 0, no guidance), from `start` of the noise range.

    Costs `steps` evaluations an edit.
    """
    times = context.prediction.timesteps(settings.steps, settings.start)
    return (yield from denoise(context, context.noised(0, times[0]), times))


def denoise(context: EditContext, x_t: Tensor, times: list[int]) -> EditGenerator:
    """x_t [S, C, h, w] at times[0] -> edited latents [T, C, h, w], with the sliders on (DDIM)."""
    return (yield from euler(context.prediction, x_t[context.source_of], times, context.edited))
