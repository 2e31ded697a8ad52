"""SDEdit (Meng et al. 2022): noise the photo, then denoise it with the sliders on.

The baseline every slider user knows (diffusers' img2img); it does not keep the photo at strength 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bs_ray.editing.displacement import Predict
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import Prediction


@torch.no_grad()
def sdedit(
    predict: Predict,
    prediction: Prediction,
    x0: Tensor,
    noise: Tensor,
    condition: Condition,
    strengths: Tensor,
    *,
    steps: int,
    strength: float,
) -> Tensor:
    """Edited latents [B, C, h, w]: DDIM (eta 0, no guidance) from `strength` of the noise range.

    x0, noise: [B, C, h, w]; condition: B rows; strengths: [B, sliders]. `steps` evaluations.
    """
    times = prediction.timesteps(steps, strength)
    start = torch.full((len(x0),), times[0], device=x0.device)
    x = prediction.add_noise(x0, noise, start)
    for now, then in zip(times, [*times[1:], None], strict=True):
        t = torch.full_like(start, now)
        predicted = predict(x, t, condition, strengths)
        x = prediction.step(x, predicted, t, None if then is None else torch.full_like(t, then))
    return x
