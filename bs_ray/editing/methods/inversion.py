"""Editing by DDIM inversion: find the noise that draws the photo, draw it again with sliders on.

Song et al. 2021 (DDIM), with AIDI's fixed-point iterations (Pan et al. 2023), and null-text
inversion (Mokady et al. 2023), which Concept Sliders' own demo uses. Baselines: rows of a table.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods.sdedit import denoise
from bs_ray.editing.run import DenoiseRequest, EditGenerator
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import classifier_free

_INNER_RATE = 1e-2
_INNER_STEPS = 10
"""Null-text: Adam's rate at the noisiest step, and its most steps for each timestep."""
_ENOUGH = 1e-5
"""Null-text: a row is done once its squared error is below this, which rises towards clean data."""


def ddim_inversion(context: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents [T, C, h, w].

    Costs S (1 + fixed_point) + T evaluations a step: `fixed_point` more in each step of the
    inversion.
    """
    times = context.prediction.timesteps(settings.steps, settings.start)
    path = yield from trajectory(context, times, settings.fixed_point)
    return (yield from denoise(context, path[0], times))


def trajectory(
    context: EditContext, times: list[int], fixed_point: int = 0
) -> Generator[DenoiseRequest, Tensor, list[Tensor]]:
    """The x_t [S, C, h, w] at each of `times` (descending) from which DDIM leads to x0, and x0.

    From x at the cleaner timestep s: x_t / a_t = x_s / a_s + (lambda_t - lambda_s) eps(x_t, t).
    At first eps is read at x_s, as diffusers' DDIMInverseScheduler does, then at the x_t found.
    """
    kind, x = context.prediction, context.x0
    a_s, b_s = torch.ones(1, 1, 1, 1, device=x.device), torch.zeros(1, 1, 1, 1, device=x.device)
    found = [x]
    for now in reversed(times):
        t = context.at(now, len(x))
        a, b = kind.coefficients(t[:1])
        x_t = x
        for _ in range(1 + fixed_point):
            noise = kind.to_noise(x_t, (yield context.base(x_t, now)), t)
            x_t = a / a_s * x + (b - a * b_s / a_s) * noise
        x, a_s, b_s = x_t, a, b
        found.append(x)
    return found[::-1]


def null_text(context: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents [T, C, h, w] at `guidance_scale`, with an empty prompt fitted at every step.

    Inverts without guidance over the whole noise range, then fits the empty prompt's embedding so
    that guided DDIM follows that trajectory. Sliders act below `start` of the noise range, as in
    Concept Sliders' demo. Costs at most S (3 + 3 * 10) + 2 T evaluations a step, where one that is
    differentiated counts as three.
    """
    kind = context.prediction
    times = kind.timesteps(settings.steps)
    path = yield from trajectory(context, times)
    fitted = _fit(context, path, times, settings.guidance_scale)
    start = settings.start * kind.num_train_timesteps
    off = torch.zeros_like(context.lora_scales)
    words = context.words and replace(context.words, target=None)
    x = path[0][context.source_of]
    for now, then, empty in zip(times, [*times[1:], None], fitted, strict=True):
        scales = (context.lora_scales if now < start else off).repeat(2, 1)
        both = context.condition.cat([context.condition, empty])
        rows = torch.cat([context.source_of, context.source_of + len(context.x0)])
        t = context.at(now, len(rows))
        twice = x.repeat(2, 1, 1, 1)
        predicted = yield DenoiseRequest(twice, t, both.rows(rows), scales, words=words)
        cond, uncond = predicted.chunk(2)
        x = _step(context, x, classifier_free(cond, uncond, settings.guidance_scale), now, then)
    return x


@torch.enable_grad()
def _fit(
    context: EditContext, path: list[Tensor], times: list[int], scale: float
) -> list[Condition]:
    """For every step the empty prompt, S rows, with which guided DDIM stays on `path`.

    Its tokens are fitted, and its pooled embedding in families that have one.
    """
    found: list[Condition] = []
    x, empty = path[0], context.empty
    for index, (now, then) in enumerate(zip(times, [*times[1:], None], strict=True)):
        with torch.no_grad():
            cond = context.predict_now(context.base(x, now))
        fitted = [part.detach().clone().requires_grad_() for part in _embeddings(empty)]
        adam = torch.optim.Adam(fitted, lr=_INNER_RATE * (1 - index / len(times) / 2))
        for _ in range(_INNER_STEPS):
            x_then = _guided(context, x, cond, _with(empty, fitted), now, then, scale)
            errors = (x_then - path[index + 1]).square().mean((1, 2, 3))
            missing = errors > _ENOUGH * (1 + 2 * index)
            if not missing.any():
                break
            gradients = torch.autograd.grad(errors.sum(), fitted)
            for part, gradient in zip(fitted, gradients, strict=True):
                part.grad = gradient
            before = [part.detach().clone() for part in fitted]
            adam.step()
            # A row that is done keeps its embedding, whatever the other rows still need.
            with torch.no_grad():
                for part, old in zip(fitted, before, strict=True):
                    part[~missing] = old[~missing]
        empty = _with(empty, [part.detach() for part in fitted])
        found.append(empty)
        with torch.no_grad():
            x = _guided(context, x, cond, empty, now, then, scale)
    return found


def _embeddings(condition: Condition) -> list[Tensor]:
    return [part for part in (condition.tokens, condition.pooled) if part is not None]


def _with(condition: Condition, embeddings: list[Tensor]) -> Condition:
    return replace(condition, tokens=embeddings[0], pooled=[*embeddings, None][1])


def _guided(
    context: EditContext,
    x: Tensor,
    cond: Tensor,
    empty: Condition,
    now: int,
    then: int | None,
    scale: float,
) -> Tensor:
    uncond = context.predict_now(context.base(x, now, empty))
    return _step(context, x, classifier_free(cond, uncond, scale), now, then)


def _step(context: EditContext, x: Tensor, predicted: Tensor, now: int, then: int | None) -> Tensor:
    after = None if then is None else context.at(then, len(x))
    return context.prediction.step(x, predicted, context.at(now, len(x)), after)
