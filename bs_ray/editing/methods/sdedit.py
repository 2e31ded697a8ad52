"""SDEdit (Meng et al. 2022): noise the photo, then denoise it with the sliders on.

The baseline every slider user knows (diffusers' img2img); it does not keep the photo at strength 0.
"""

from __future__ import annotations

from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.run import EditGenerator, euler


def sdedit(work: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents [T, C, h, w]: DDIM (eta 0, no guidance) from `strength` of the noise range.

    `steps` evaluations an edit.
    """
    times = work.prediction.timesteps(settings.steps, settings.strength)
    start = work.at(times[0], len(work.x0))
    noised = work.prediction.add_noise(work.x0, work.noise(0), start)
    return (yield from denoise(work, noised, times))


def denoise(work: EditContext, x_t: Tensor, times: list[int]) -> EditGenerator:
    """x_t [S, C, h, w] at times[0] -> edited latents [T, C, h, w], with the sliders on (DDIM)."""
    return (yield from euler(work.prediction, x_t[work.source_of], times, work.edited))
