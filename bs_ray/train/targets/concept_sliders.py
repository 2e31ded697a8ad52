"""Concept Sliders' own training procedure (Gandikota et al. 2023), the baseline of every table.

It trains one polarity and costs 62 forward-equivalents a row: half a denoising run with the slider
on, three frozen predictions and a trained one. Each is a guided pair of rows, of which guidance 1
discards one, as in the published trainer. All of that cost and its targets are kept here. Two
things are not, since they would only handicap it: slider weights in bf16, and a network that is
asked at a timestep 19 off the latent's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bs_ray.models.base import Condition
from bs_ray.models.diffusion import euler_path, guided, keyed_generator
from bs_ray.train.engines import mean_over_workers
from bs_ray.train.losses import guidance_target, triplet_loss
from bs_ray.train.step import TrainState, check_finite
from bs_ray.train.targets.teacher import Teacher

DENOISING_STEPS = 50
GUIDANCE = 3.0


def concept_sliders_step(
    state: TrainState, step: int, denoised: int | None = None
) -> dict[str, float]:
    """One step of the published procedure over this worker's rows.

    denoised: the steps of the partial run; by default one number for all rows of the step, drawn
    from 1 .. 49, so that they can share forward passes. Raises TrainingDiverged.
    """
    job, model = state.job, state.model
    (prompts,) = job.concepts.values()
    rng = keyed_generator(job.seed, step, 0)
    random_steps = int(torch.randint(1, DENOISING_STEPS, (), generator=rng))
    times = model.prediction.timesteps(DENOISING_STEPS)
    count = len(state.rows)

    assert state.teacher is not None

    def prompt_rows(text: str, teacher: Teacher = state.teacher) -> Condition:
        return teacher.conditions([text] * count)

    target, negative = prompt_rows(prompts.target), prompt_rows(prompts.negative)
    neutral = prompt_rows(prompts.target if prompts.neutral is None else prompts.neutral)
    on = torch.ones(2 * count, 1, device=model.device)

    # x_T -> x_t with the slider at +1, away from the negative prompt.
    def with_slider(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return state.bank.predict(model, x, t, condition, on)

    noise = [
        torch.randn(state.photos.latent_shape, generator=keyed_generator(job.seed, step, row))
        for row in state.rows
    ]
    with torch.no_grad():
        forward = guided(with_slider, target, negative, GUIDANCE)
        path = euler_path(model.prediction, forward, torch.stack(noise).to(model.device), times)
        x_t, now = next(point for i, point in enumerate(path) if i == (denoised or random_steps))
        assert now is not None
        t = torch.full((count,), now, device=model.device)

        # At guidance 1 the first half of the pair is its result, and the second is discarded.
        def frozen(condition: Condition) -> Tensor:
            both = Condition.cat([condition, prompt_rows("")])
            return model.predict(x_t.repeat(2, 1, 1, 1), t.repeat(2), both)[:count]

        positive, middle, low = (
            frozen(prompt_rows(prompts.positive)),
            frozen(neutral),
            frozen(negative),
        )
        sign = 1 if prompts.action == "enhance" else -1
        ones = torch.full((count,), float(sign), device=model.device)
        goal = guidance_target(middle, positive - low, ones, job.losses.eta)

    both = Condition.cat([target, prompt_rows("")])
    predicted = state.student(x_t.repeat(2, 1, 1, 1), t.repeat(2), on, both)[:count]
    loss = triplet_loss(predicted, goal).mean()
    numbers = {"triplet": float(mean_over_workers(loss.detach().clone()))}
    check_finite(numbers, step, job)
    state.student.backward_and_step(loss)
    return numbers | {"w_triplet": 1.0, "w_perceptual": 0.0}
