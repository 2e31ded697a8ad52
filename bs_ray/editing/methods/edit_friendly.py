"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024): a baseline, a row of a table.

The photo is noised independently at every timestep. A random DDPM step from one of these noisy
photos to the next would have had to add something; that something is kept, and is added again
where the sliders are on.
"""

from __future__ import annotations

from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.run import EditGenerator


def edit_friendly(context: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents [T, C, h, w], from `start` of the noise range; x0 itself at strength 0.

    All of x_then - mean is kept (sigma z in the paper), so the last step, whose sigma is 0, returns
    x0 too. Costs S + T evaluations a step.
    """
    kind = context.prediction
    times = kind.timesteps(settings.steps, settings.start)
    noised = [context.noised(step, now) for step, now in enumerate(times)]
    x, estimate = noised[0][context.source_of], context.x0[context.source_of]
    for index, (now, then) in enumerate(zip(times, [*times[1:], None], strict=True)):
        x_t, x_then = noised[index], noised[index + 1] if then is not None else context.x0
        kept = x_then - _mean(context, x_t, (yield context.base(x_t, now)), now, then)
        predicted = yield context.edited(x, now, estimate)
        estimate = kind.to_x0(x, predicted, context.at(now, len(x)))
        x = _mean(context, x, predicted, now, then) + kept[context.source_of]
    return x


def _mean(context: EditContext, x: Tensor, predicted: Tensor, now: int, then: int | None) -> Tensor:
    """The mean of x_then given x_t and the prediction: DDPM's posterior between two timesteps.

    Its variance is b_s^2 (1 - (a_t b_s / (a_s b_t))^2), whatever a^2 + b^2 is; in a flow it is not
    1.
    """
    kind, t = context.prediction, context.at(now, len(x))
    x0 = kind.to_x0(x, predicted, t)
    if then is None:
        return x0
    (a_t, b_t), (a_s, b_s) = kind.coefficients(t), kind.coefficients(context.at(then, len(x)))
    variance = b_s**2 * (1 - (a_t * b_s / (a_s * b_t)) ** 2)
    return a_s * x0 + (b_s**2 - variance).sqrt() * kind.to_noise(x, predicted, t)
