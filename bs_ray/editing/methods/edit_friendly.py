"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024): a baseline, a row of a table.

The photo is noised independently at every timestep; what a random DDPM step from one of these to
the next would have had to add is kept, and added again where the sliders are on.
"""

from __future__ import annotations

from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.run import EditGenerator


def edit_friendly(work: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents [T, C, h, w], from `strength` of the noise range; x0 itself at strength 0.

    What is kept is the whole of x_then - mean (sigma z in the paper), so the last step, whose
    sigma is 0, gives x0 back as well. Costs S + T evaluations a step.
    """
    kind = work.prediction
    times = kind.timesteps(settings.steps, settings.strength)
    noised = [
        kind.add_noise(work.x0, work.noise(step), work.at(now, len(work.x0)))
        for step, now in enumerate(times)
    ]
    x, estimate = noised[0][work.source_of], work.x0[work.source_of]
    for index, (now, then) in enumerate(zip(times, [*times[1:], None], strict=True)):
        x_t, x_then = noised[index], noised[index + 1] if then is not None else work.x0
        kept = x_then - _mean(work, x_t, (yield work.base(x_t, now)), now, then)
        read = yield work.edited(x, now, estimate)
        estimate = kind.to_x0(x, read, work.at(now, len(x)))
        x = _mean(work, x, read, now, then) + kept[work.source_of]
    return x


def _mean(work: EditContext, x: Tensor, predicted: Tensor, now: int, then: int | None) -> Tensor:
    """Mean of x_then given x_t and the prediction: DDPM's posterior between any two timesteps.

    Its variance is b_s^2 (1 - (a_t b_s / (a_s b_t))^2), whatever a^2 + b^2 is (a flow's is not 1).
    """
    kind, t = work.prediction, work.at(now, len(x))
    x0 = kind.to_x0(x, predicted, t)
    if then is None:
        return x0
    (a_t, b_t), (a_s, b_s) = kind.coefficients(t), kind.coefficients(work.at(then, len(x)))
    variance = b_s**2 * (1 - (a_t * b_s / (a_s * b_t)) ** 2)
    return a_s * x0 + (b_s**2 - variance).sqrt() * kind.to_noise(x, predicted, t)
