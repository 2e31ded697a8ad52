"""One train step: the paper's method on one page (docs/method.md, "The paper's equations").

Legend: R rows of this worker's batch (see batches.py); the losses on pictures are computed on the
"near" rows. x_t and predictions are latents [R, C, h, w]; pictures are [near, 3, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.train.adversary import Adversary, balanced
from bs_ray.train.batches import Batches, TrainBatch
from bs_ray.train.engines import Engine, mean_over_workers
from bs_ray.train.losses import (
    Features,
    LossNormaliser,
    Weights,
    margin_loss,
    perceptual_loss,
    triplet_loss,
    weights_at,
)
from bs_ray.train.targets.teacher import Teacher


class TrainingDiverged(ArithmeticError):
    """A loss is not finite. No weight was changed by it, and the last checkpoint is from before."""


class Student(nn.Module):
    """The base with the run's sliders on. The parameters are the sliders' alone."""

    def __init__(self, model: DiffusionModel, bank: SliderBank):
        super().__init__()
        self.bank = bank
        self.model = model  # not an nn.Module, so the engine does not see the frozen base
        bank.attach(model.denoiser)

    def forward(self, x_t: Tensor, t: Tensor, lora_scales: Tensor, condition: Condition) -> Tensor:
        """e_s(x_t, c_t) with each row's sliders at its own LoRA scales [R, M]: like x_t."""
        # Eq 3, 4: W = W0 + s * alpha / r * B A, by hooks; both polarities in one batch.
        return self.bank.predict(self.model, x_t, t, condition, lora_scales)


@dataclass
class TrainState:
    """What one worker trains with.

    `teacher` is None for image pairs; `features` and `adversary` are None where no loss needs
    them.
    """

    job: TrainJob
    model: DiffusionModel
    photos: PhotoPool
    teacher: Teacher | None
    batches: Batches
    student: Engine
    adversary: Adversary | None
    features: Features | None
    rank: int = 0
    workers: int = 1
    normaliser: LossNormaliser = field(default_factory=LossNormaliser)

    @property
    def rows(self) -> range:
        """This worker's share of the global batch."""
        share = self.job.batch_size // self.workers
        return range(self.rank * share, (self.rank + 1) * share)

    @property
    def bank(self) -> SliderBank:
        """The sliders under training."""
        student = self.student.module
        assert isinstance(student, Student)
        return student.bank


def train_step(state: TrainState, step: int) -> dict[str, float]:
    """Step the sliders, then the discriminator. Returns the losses, means over all workers' rows.

    Raises TrainingDiverged, before any weight changes, where a loss is not finite.
    """
    job, model, losses = state.job, state.model, state.job.losses
    weights = weights_at(step, job.steps, losses)
    adversary = state.adversary

    batch = state.batches.at(step, state.rows)
    near, x_t, t = batch.near, batch.x_t, batch.t
    # Where pulls are measured before they are added, no engine must see their backward passes.
    student = state.student.module if weights.adversarial_share else state.student
    predicted = student(x_t, t, batch.lora_scales, batch.condition)
    found = {"triplet": _triplet(job, batch, predicted)}
    untrained = batch.neutral if batch.neutral is not None else predicted.detach()
    norms = {"triplet": _triplet(job, batch, untrained)}

    # G(x_t): the one-step x0 estimate and its picture, at timesteps where it is more than blur.
    def estimate(prediction: Tensor) -> Tensor:
        return model.prediction.to_x0(x_t[near], prediction[near], t[near])

    fake_x0 = estimate(predicted)
    fake = model.decode(fake_x0) if losses.image_terms else None

    # Eq 7: |phi(G(x_t)) - phi(X)|^2, X the real photo (the paper), or a picture of the target.
    if losses.perceptual and state.features and fake is not None:
        with torch.no_grad():
            reference, compared = _references(state, batch, estimate)
            if not state.normaliser.settled:
                norms["perceptual"] = perceptual_loss(state.features, compared(), reference)
        found["perceptual"] = perceptual_loss(state.features, fake, reference)

    # The slider against the frozen discriminator (III-C), which sees latents or their pictures.
    if adversary and losses.adversarial_fake == "edit":
        fake_x0 = adversary.edited(batch, state.bank, step)
        fake = model.decode(fake_x0) if losses.image_terms else None
    judged = fake_x0 if losses.discriminator == "latent" else fake
    if adversary and judged is not None and (weights.adversarial or weights.adversarial_share):
        found["adversarial"] = adversary.loss(judged)

    numbers = _means(state, batch, step, found | {f"norm_{n}": v for n, v in norms.items()})
    if not state.normaliser.settled:
        state.normaliser.update({name: numbers[f"norm_{name}"] for name in norms})
    numbers |= _step_sliders(state, batch, found, weights)

    if adversary and judged is not None:
        with torch.no_grad():
            real_x0 = adversary.real(batch, lambda: estimate(batch.target))
            pairs = adversary.pairs(real_x0, fake_x0.detach(), judged.detach(), step)
        numbers |= _discriminator_steps(state, adversary, batch, step, pairs)
    shown = {name: value for name, value in numbers.items() if not name.startswith("norm_")}
    return shown | {"w_triplet": weights.triplet, "w_perceptual": weights.perceptual}


def _step_sliders(
    state: TrainState, batch: TrainBatch, found: dict[str, Tensor], weights: Weights
) -> dict[str, float]:
    """Eq 8: L = l_tri L_triplet + l_perp L_perp + l_adv L_adv, the first two over their norms.

    Returns the adversary's weight, where that follows from its share of the pull.
    """
    total = weights.triplet * _share(state, batch, found["triplet"]) / state.normaliser["triplet"]
    if "perceptual" in found:
        perceptual = _share(state, batch, found["perceptual"]) / state.normaliser["perceptual"]
        total = total + weights.perceptual * perceptual
    if "adversarial" in found:
        adversarial = _share(state, batch, found["adversarial"])
        if weights.adversarial_share:
            factors = list(state.bank.parameters())
            pulls, weight = balanced(factors, total, adversarial, weights.adversarial_share)
            state.student.step_with(pulls)
            return {"w_adversarial": float(weight)}
        total = total + weights.adversarial * adversarial
    state.student.backward_and_step(total)
    return {}


def _references(
    state: TrainState, batch: TrainBatch, estimate: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Callable[[], Tensor]]:
    """(what Eq 7 compares with, a picture whose distance from it is the loss's norm)."""
    kind, neutral = state.job.losses.perceptual_reference, batch.neutral

    def target() -> Tensor:
        return state.model.decode(estimate(batch.target))

    if neutral is None or kind == "real":
        return state.photos.images(batch.photos), target

    def still() -> Tensor:
        return state.model.decode(estimate(neutral))

    return (target(), still) if kind == "target" else (still(), target)


def _discriminator_steps(
    state: TrainState,
    adversary: Adversary,
    batch: TrainBatch,
    step: int,
    pairs: list[tuple[Tensor, Tensor]],
) -> dict[str, float]:
    """III-C: step the discriminator on what is real and on what the slider has produced.

    Returns its loss on the last pair, and how often it was right about the first one before it saw
    it.
    """
    numbers: dict[str, float] = {}
    accuracy = adversary.accuracy(*pairs[0])
    for real, fake in pairs:
        adversary.critic.requires_grad_(True)
        found = {"discriminator": adversary.engine(real, fake), "accuracy": accuracy}
        numbers = _means(state, batch, step, found)
        adversary.engine.backward_and_step(_share(state, batch, found["discriminator"]))
    return numbers


def _triplet(job: TrainJob, batch: TrainBatch, prediction: Tensor) -> Tensor:
    """Eq 5, 6 for each row, in the form that the job asks for."""
    if job.losses.triplet_form == "margin" and batch.neutral is not None:
        return margin_loss(prediction, batch.target, batch.neutral, job.losses.margin)
    return triplet_loss(prediction, batch.target)


def _share(state: TrainState, batch: TrainBatch, losses: Tensor) -> Tensor:
    """A scalar of this worker's rows; its mean over the workers is the mean over all rows."""
    total = batch.rows_total if len(losses) == len(batch.t) else batch.near_total
    return losses.sum() * state.workers / total


def _means(
    state: TrainState, batch: TrainBatch, step: int, losses: dict[str, Tensor]
) -> dict[str, float]:
    """Means over all workers' rows. Raises TrainingDiverged, on every worker, unless finite."""
    shares = torch.stack([_share(state, batch, rows.detach()) for rows in losses.values()])
    means = dict(zip(losses, mean_over_workers(shares).tolist(), strict=True))
    check_finite(means, step, state.job)
    return means


def check_finite(losses: dict[str, float], step: int, job: TrainJob) -> None:
    """Raise TrainingDiverged unless all losses are finite. They are the same on every worker."""
    if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
        raise TrainingDiverged(
            f"step {step}: got a {bad[0]} loss of {losses[bad[0]]}; expected a finite number. "
            f"Lower lr (now {job.lr:g}) or losses.eta (now {job.losses.eta:g})"
        )
