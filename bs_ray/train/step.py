"""One train step: the paper's method on one page.

Randomness is a function of (seed, step, global row), never of the worker or of what went before:
any number of workers sees the same batch, and a resumed run continues as if never stopped.

Legend: B rows of this worker; of these the "near" ones (t <= image_timestep_max) carry the image
terms. x0, x_t and predictions are latents [B, C, h, w]; pictures are [near, 3, H, W].
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bs_ray.config import TrainJob
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.train.discriminator import Discriminator
from bs_ray.train.engines import Engine, mean_over_workers
from bs_ray.train.losses import (
    Features,
    Scales,
    adversarial_loss,
    guidance_target,
    perceptual_loss,
    triplet_loss,
    weights_at,
)
from bs_ray.train.photos import PhotoPool
from bs_ray.train.teacher import LiveTeacher


class TrainingDiverged(ArithmeticError):
    """A loss is not finite. No weight has seen it, and the last checkpoint is from before."""


class Student(nn.Module):
    """The base with one slider on, at its target prompt. The parameters are the slider's alone."""

    def __init__(self, model: DiffusionModel, bank: SliderBank, prompt: str):
        super().__init__()
        self.bank = bank
        self.model = model  # no nn.Module, so the frozen base stays outside the engine
        self.condition = model.embed([prompt])
        bank.attach(model.denoiser)

    def forward(self, x_t: Tensor, t: Tensor, strength: Tensor) -> Tensor:
        """e_s(x_t, c_t) with each row at its own strength [B]: like x_t."""
        # Eq 3, 4: W = W0 + s * alpha / r * B A, by hooks; both polarities in one batch.
        with self.bank.strengths(strength[:, None]):
            return self.model.predict(x_t, t, self.condition.repeat(len(x_t)))


@dataclass
class Parts:
    """What one worker trains with. `features` and `discriminator` are None where their l is 0."""

    job: TrainJob
    model: DiffusionModel
    photos: PhotoPool
    teacher: LiveTeacher
    student: Engine
    discriminator: Engine | None
    features: Features | None
    rank: int = 0
    workers: int = 1
    scales: Scales = field(default_factory=Scales)

    @property
    def rows(self) -> range:
        """This worker's share of the global batch."""
        share = self.job.batch_size // self.workers
        return range(self.rank * share, (self.rank + 1) * share)


@dataclass(frozen=True)
class Batch:
    """What chance decides about some rows."""

    photos: list[int]
    t: Tensor  # int64 [B]
    strength: Tensor  # float32 [B] in [-S, S]
    noise: Tensor  # float32 [B, C, h, w]


def draw_batch(parts: Parts, rows: range, step: int) -> Batch:
    """The global rows `rows` of a step.

    Even rows lie in the band of the image terms (t <= image_timestep_max), odd ones above it: so
    half of every batch feeds these terms, and so does each worker that has two rows or more.
    """
    job, timesteps = parts.job, parts.model.prediction.num_train_timesteps
    split = min(job.losses.image_timestep_max + 1, timesteps)
    drawn = []
    for row in rows:
        key = hashlib.sha256(f"{job.seed}|{step}|{row}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        low, high = (0, split) if row % 2 == 0 else (split % timesteps, timesteps)
        photo = int(torch.randint(len(parts.photos), (), generator=rng))
        t = torch.randint(low, high, (), generator=rng)
        strength = (2 * torch.rand((), generator=rng) - 1) * job.losses.max_strength
        drawn.append((photo, t, strength, torch.randn(parts.model.latent_shape, generator=rng)))
    photos, *columns = zip(*drawn, strict=True)
    return Batch(list(photos), *(torch.stack(column).to(parts.model.device) for column in columns))


def train_step(parts: Parts, step: int) -> dict[str, float]:
    """Step the slider, then the discriminator; the losses, means over all workers' rows.

    Raises TrainingDiverged, before any step, where a loss is not finite.
    """
    job, model, losses = parts.job, parts.model, parts.job.losses
    weights = weights_at(step, job.steps, losses)
    near = [index for index, row in enumerate(parts.rows) if row % 2 == 0]

    # Eq 1: x_t = a x0 + b n, x0 a real photo's latents.
    batch = draw_batch(parts, parts.rows, step)
    x0, t = parts.photos.latents(batch.photos), batch.t
    x_t = model.prediction.add_noise(x0, batch.noise, t)

    # Eq 5, 6, 11: what the frozen base says, and what the slider is to say at strength s.
    neutral, positive, negative = parts.teacher(x_t, t)
    target = guidance_target(neutral, positive, negative, batch.strength, losses.eta)
    predicted = parts.student(x_t, t, batch.strength)
    found = {"triplet": triplet_loss(predicted, target)}
    yardsticks = {"triplet": triplet_loss(neutral, target)}

    # G(x_t): the one-step x0 estimate as a picture, where it is more than blur.
    def pictures(prediction: Tensor) -> Tensor:
        return model.decode(model.prediction.to_x0(x_t[near], prediction[near], t[near]))

    fake = pictures(predicted) if parts.features or parts.discriminator else None

    # Eq 7: |phi(G(x_t)) - phi(X)|^2, X the real photo or the frozen base's own estimate.
    if parts.features and fake is not None:
        with torch.no_grad():
            if losses.perceptual_reference == "real":
                reference = parts.photos.images([batch.photos[index] for index in near])
            else:
                reference = pictures(neutral)
            if not parts.scales.settled:
                ideal = pictures(target)
                yardsticks["perceptual"] = perceptual_loss(parts.features, ideal, reference)
        found["perceptual"] = perceptual_loss(parts.features, fake, reference)

    # The slider against the frozen discriminator: `module`, for through the engine DeepSpeed
    # would take the discriminator's part of this backward for its own.
    if parts.discriminator and fake is not None and weights.adversarial:
        network = parts.discriminator.module.requires_grad_(False)
        assert isinstance(network, Discriminator)
        found["adversarial"] = adversarial_loss(network.score(fake))

    # Eq 8: L = l_tri L_triplet + l_perp L_perp + l_adv L_adv, each in units of its yardstick.
    numbers = _means(parts, step, found | {f"yard_{n}": v for n, v in yardsticks.items()})
    if not parts.scales.settled:
        parts.scales.update({name: numbers[f"yard_{name}"] for name in yardsticks})
    total = weights.triplet * _share(parts, found["triplet"]) / parts.scales["triplet"]
    if "perceptual" in found:
        perceptual = _share(parts, found["perceptual"]) / parts.scales["perceptual"]
        total = total + weights.perceptual * perceptual
    if "adversarial" in found:
        total = total + weights.adversarial * _share(parts, found["adversarial"])
    parts.student.backward_and_step(total)

    # III-C: then the discriminator, on what the slider has just drawn.
    if parts.discriminator and fake is not None:
        parts.discriminator.module.requires_grad_(True)
        with torch.no_grad():
            real = model.decode(x0[near])
        found = {"discriminator": parts.discriminator(real, fake.detach())}
        numbers |= _means(parts, step, found)
        parts.discriminator.backward_and_step(_share(parts, found["discriminator"]))
    shown = {name: value for name, value in numbers.items() if not name.startswith("yard_")}
    return shown | {"w_triplet": weights.triplet, "w_perceptual": weights.perceptual}


def _share(parts: Parts, losses: Tensor) -> Tensor:
    """This worker's rows as a scalar whose mean over workers is the mean over all rows."""
    rows = parts.job.batch_size
    if len(losses) < len(parts.rows):  # of the near rows, every second of the global batch
        rows = math.ceil(rows / 2)
    return losses.sum() * parts.workers / rows


def _means(parts: Parts, step: int, losses: dict[str, Tensor]) -> dict[str, float]:
    """Means over all workers' rows. Raises TrainingDiverged, on every worker, unless finite."""
    shares = torch.stack([_share(parts, rows.detach()) for rows in losses.values()])
    means = dict(zip(losses, mean_over_workers(shares).tolist(), strict=True))
    if bad := [name for name, value in means.items() if not math.isfinite(value)]:
        raise TrainingDiverged(
            f"step {step}: got a {bad[0]} loss of {means[bad[0]]}; expected a finite number. "
            f"Lower lr (now {parts.job.lr:g}) or losses.eta (now {parts.job.losses.eta:g})"
        )
    return means
