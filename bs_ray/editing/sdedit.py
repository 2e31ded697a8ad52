"""SDEdit (Meng et al. 2022): noise the photo, then denoise it with the sliders on.

The baseline every slider user knows (diffusers' img2img); it does not keep the photo at strength 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.work import Work
from bs_ray.models.diffusion import euler_path


@torch.no_grad()
def sdedit(work: Work, settings: EditorSettings) -> Tensor:
    """Edited latents [T, C, h, w]: DDIM (eta 0, no guidance) from `strength` of the noise range.

    `steps` evaluations an edit.
    """
    times = work.prediction.timesteps(settings.steps, settings.strength)
    start = work.at(times[0], len(work.x0))
    return denoise(work, work.prediction.add_noise(work.x0, work.noise(0), start), times)


def denoise(work: Work, x_t: Tensor, times: list[int]) -> Tensor:
    """x_t [S, C, h, w] at times[0] -> edited latents [T, C, h, w], with the sliders on (DDIM)."""

    def forward(x: Tensor, t: Tensor) -> Tensor:
        return work.edited(x, int(t[0]))

    *_, (edited, _) = euler_path(work.prediction, forward, x_t[work.source_of], times)
    return edited
