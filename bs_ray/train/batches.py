"""A step's rows and what they are to predict: from noised photos, or from pairs of pictures.

Randomness is a function of (seed, step, global row), never of the worker or of earlier steps: any
number of workers sees the same batch, and a resumed run continues as if it had never stopped.

Legend: B rows of this worker, M sliders; R = M * B rows of the student, slider by slider (in a
batch of pairs R = B). "Near" rows have t <= image_timestep_max, and the losses on pictures are
computed on them. They are the even rows of the global batch, so that on every worker half of the
rows feed these losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bs_ray.config import TrainJob
from bs_ray.datasets.pairs import pair_sets
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import keyed_generator
from bs_ray.models.masks import magnitude_mask, soft_mask
from bs_ray.train.losses import guidance_target
from bs_ray.train.targets.teacher import Teacher, TeacherOutput


@dataclass(frozen=True)
class TrainBatch:
    """R rows of the student: where it predicts, and what it should."""

    x_t: Tensor  # float32 [R, C, h, w]
    t: Tensor  # int64 [R]
    lora_scales: Tensor  # float32 [R, M]: each row's strength, in the column of its slider
    condition: Condition  # R rows of target prompts
    target: Tensor  # [R, C, h, w]
    neutral: Tensor | None  # [R, C, h, w]: the frozen prediction, where there is a teacher
    near: list[int]  # which of the R rows the losses on pictures are computed on
    photos: list[int]  # a real photo for each near row
    rows_total: int  # R over all workers
    near_total: int  # near rows over all workers


class Batches(Protocol):
    """Where lessons come from; the same face for every mode."""

    def at(self, step: int, rows: range) -> TrainBatch:
        """The batch of the global rows `rows` of a step."""

    def refresh(self, step: int, rows: range) -> None:
        """Called after every checkpoint, before the next step: renew what depends on the
        weights."""


@dataclass(frozen=True)
class RowDraws:
    """What is drawn at random for B rows."""

    photo: list[int]
    t: Tensor  # int64 [B]
    strength: Tensor  # float32 [M, B] in [-S, S]
    noise: Tensor  # float32 [B, C, h, w]
    turn: Tensor  # int64 [B]: which attribute to disentangle has its turn


def draw(
    job: TrainJob,
    rows: range,
    step: int,
    photos: int,
    timesteps: int,
    latent_shape: tuple[int, int, int],
) -> RowDraws:
    """Photo, timestep, strengths and noise of the global rows of a step, on the CPU.

    Even rows are near (t <= image_timestep_max), odd rows are not.
    """
    split = min(job.losses.image_timestep_max + 1, timesteps)
    draws = []
    for row in rows:
        rng = keyed_generator(job.seed, step, row)
        low, high = (0, split) if row % 2 == 0 else (split % timesteps, timesteps)
        photo = int(torch.randint(photos, (), generator=rng))
        t = torch.randint(low, high, (), generator=rng)
        first = 2 * torch.rand((), generator=rng) - 1
        noise = torch.randn(latent_shape, generator=rng)
        # Other sliders draw last, so that the first has the same batch with or without them.
        others = 2 * torch.rand(len(job.slider_names) - 1, generator=rng) - 1
        strength = torch.cat([first[None], others]) * job.losses.max_strength
        turn = torch.tensor(step * job.batch_size + row)
        draws.append((photo, t, strength, noise, turn))
    numbers, times, strengths, noises, turns = zip(*draws, strict=True)
    return RowDraws(
        list(numbers),
        torch.stack(times),
        torch.stack(strengths, 1),
        torch.stack(noises),
        torch.stack(turns),
    )


def text_batch(
    job: TrainJob,
    teacher: Teacher,
    rows: range,
    draws: RowDraws,
    x_t: Tensor,
    t: Tensor,
    predicted: TeacherOutput,
) -> TrainBatch:
    """The rows of every slider on the same x_t, with their targets: Eq 5, 6, 11."""
    count, sliders = len(rows), len(job.slider_names)
    strength = draws.strength.to(x_t.device)
    neutral, direction = predicted.neutral.flatten(0, 1), predicted.direction.flatten(0, 1)
    if job.losses.soft_mask:
        direction = soft_mask(direction, magnitude_mask(direction), job.losses.soft_mask)
    of = torch.arange(sliders).repeat_interleave(count)
    lora_scales = torch.zeros(sliders * count, sliders, device=x_t.device)
    lora_scales[torch.arange(sliders * count), of] = strength.flatten()
    near = [index for index, row in enumerate(rows) if row % 2 == 0]
    return TrainBatch(
        x_t=x_t.repeat(sliders, 1, 1, 1),
        t=t.repeat(sliders),
        lora_scales=lora_scales,
        condition=teacher.targets(of, draws.turn.repeat(sliders)),
        target=guidance_target(neutral, direction, strength.flatten(), job.losses.eta),
        neutral=neutral,
        near=[m * count + index for m in range(sliders) for index in near],
        photos=[draws.photo[index] for _ in range(sliders) for index in near],
        rows_total=sliders * job.batch_size,
        near_total=sliders * ((job.batch_size + 1) // 2),
    )


@dataclass
class LiveBatches:
    """Noised photos, and the frozen base's predictions for them, computed at every step."""

    job: TrainJob
    model: DiffusionModel
    photos: PhotoPool
    teacher: Teacher

    def at(self, step: int, rows: range) -> TrainBatch:
        draws, x_t, t = self.noised(step, rows)
        predicted = self.teacher(x_t, t, draws.turn)
        return text_batch(self.job, self.teacher, rows, draws, x_t, t, predicted)

    def refresh(self, step: int, rows: range) -> None:
        """Nothing here depends on the slider's weights."""

    def noised(self, step: int, rows: range) -> tuple[RowDraws, Tensor, Tensor]:
        """(what was drawn, x_t, t): Eq 1, x_t = a x0 + b n, where x0 is a photo's latents."""
        kind, device = self.model.prediction, self.model.device
        draws = draw(
            self.job,
            rows,
            step,
            len(self.photos),
            kind.num_train_timesteps,
            self.photos.latent_shape,
        )
        t = draws.t.to(device)
        x0 = self.photos.latents(draws.photo)
        return draws, kind.add_noise(x0, draws.noise.to(device), t), t


@dataclass
class PairBatches:
    """Pictures of one thing at two strengths, of which the slider learns the difference.

    Rows 2 i and 2 i + 1 are a pair under one noise and timestep; the first has the lower strength.
    What they are to predict is their own noise (or velocity).
    """

    job: TrainJob
    model: DiffusionModel
    photos: PhotoPool
    condition: Condition  # the target prompt, one row

    def __post_init__(self) -> None:
        self.sets = pair_sets(self.photos.keys)

    def at(self, step: int, rows: range) -> TrainBatch:
        kind, device, job = self.model.prediction, self.model.device, self.job
        # One draw a pair, numbered like the rows of a text slider: even ones are near.
        pairs = range(rows.start // 2, rows.stop // 2)
        draws = draw(
            job, pairs, step, len(self.sets), kind.num_train_timesteps, self.photos.latent_shape
        )
        numbers, strengths = [], []
        for pair, which in zip(pairs, draws.photo, strict=True):
            rng = keyed_generator(job.seed, step, -1 - pair)
            for strength, number in _two_of(self.sets[which], rng):
                assert job.pairs is not None
                jitter = 1 + job.pairs.jitter * (2 * float(torch.rand((), generator=rng)) - 1)
                numbers.append(number)
                strengths.append(strength * jitter)
        x0 = self.photos.latents(numbers)
        t = draws.t.repeat_interleave(2).to(device)
        noise = draws.noise.repeat_interleave(2, 0).to(device)
        near = [index for index in range(len(rows)) if pairs[index // 2] % 2 == 0]
        return TrainBatch(
            x_t=kind.add_noise(x0, noise, t),
            t=t,
            lora_scales=torch.tensor(strengths, device=device)[:, None],
            condition=self.condition.rows(torch.zeros(len(rows), dtype=torch.int64)),
            target=kind.truth(x0, noise, t),
            neutral=None,
            near=near,
            photos=[numbers[index] for index in near],
            rows_total=job.batch_size,
            near_total=2 * ((job.batch_size // 2 + 1) // 2),
        )

    def refresh(self, step: int, rows: range) -> None:
        """Nothing here depends on the slider's weights."""


def _two_of(one: dict[float, int], rng: torch.Generator) -> list[tuple[float, int]]:
    """Two different strengths of a set with their pictures, the lower strength first."""
    order = torch.randperm(len(one), generator=rng)[:2].sort().values.tolist()
    items = list(one.items())
    return [items[index] for index in order]
